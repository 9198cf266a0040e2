"""The best weights of a phase: saved by the first process, and restored."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lit_finetune.distributed.fsdp2 import is_sharded, reshard
from lit_finetune.freezing.copy_weights import copy_trained, restore_weights
from lit_finetune.freezing.trainable_state import TrainableState
from lit_finetune.schedules.triggers import Stall


def best_weights(
    trainer: Trainer, pl_module: LightningModule, state: TrainableState
) -> dict[str, Tensor]:
    """A copy of the weights that train, in the first process; empty in the others."""
    if not (trainer.is_global_zero or is_sharded(pl_module)):
        return {}
    reshard(pl_module)
    best = copy_trained(pl_module, state.frozen, auxiliary=state.plan.auxiliary_networks)
    return best if trainer.is_global_zero else {}


def restore_best_weights(pl_module: LightningModule, best: dict[str, Tensor], stall: Stall) -> None:
    """Load the best weights of the phase that ends into the module."""
    restore_weights(pl_module, best)
    rank_zero_info(
        f"Back to the best weights of the phase, at {stall.best:.4g}."
        if best
        else "There are no best weights of the phase to go back to: nothing was validated."
    )

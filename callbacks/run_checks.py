"""Checks during training: what the module's own code does against the schedule."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from lit_finetune.distributed.wrapping import exchanges_parameters, shards_parameters
from lit_finetune.freezing.auxiliary_statistics import (
    FixedNetworks,
    without_averaged_models,
)
from lit_finetune.freezing.layer_watch import LayerWatch, refuse_exchanged_in_training
from lit_finetune.freezing.silent_blocks import SilentBlocks, silent_line
from lit_finetune.freezing.trainable_state import TrainableState
from lit_finetune.modules.fsdp1 import parameters_by_name
from lit_finetune.training.layer_checks import report_restored


class RunChecks:
    """Detects exchanged layers and blocks without a gradient, and restores auxiliary networks.

    Without effect before `begin`.
    """

    def __init__(self) -> None:
        self._fixed = FixedNetworks({})
        self._silent = SilentBlocks()

    def begin(self, trainer: Trainer, pl_module: LightningModule, state: TrainableState) -> None:
        """Record the module's layers at the start of training.

        Args:
            trainer: The Trainer of the run.
            pl_module: The module that it trains.
            state: The parameters that train.
        """
        self._trainer, self._module, self._state = trainer, pl_module, state
        self._parameters = parameters_by_name(pl_module)
        self._modules_only = exchanges_parameters(trainer.strategy, trainer.precision_plugin)
        self._watch = LayerWatch(pl_module, modules_only=self._modules_only)
        self._silent = SilentBlocks()
        auxiliary = [] if shards_parameters(trainer.strategy) else state.plan.auxiliary_networks
        self._fixed = FixedNetworks(without_averaged_models(pl_module, auxiliary))
        self.begin_phase()

    def begin_phase(self) -> None:
        """Expect gradients in the blocks that have started to train."""
        # Of a sharded block a process may hold no parameter.
        if not shards_parameters(self._trainer.strategy):
            self._silent.add(self._state.plan.blocks, self._state.newly_trained())

    def before_batch(self) -> None:
        """Check what hooks did, before a batch or a phase.

        Raises:
            ValueError: They exchanged or added layers.
        """
        self._fixed.begin_batch()
        self._refuse_exchanged()

    def before_step(self) -> None:
        """Check what `training_step` did, before the optimizer steps.

        Raises:
            ValueError: It exchanged or added layers, or did not follow the schedule.
        """
        if self._module.automatic_optimization:  # otherwise the module may freeze networks in turn
            self._state.refuse_changed()
        self._refuse_exchanged()
        report_restored(self._fixed.before_step())  # after the forward pass
        self._silent.check()
        if silent := self._silent.pop_silent():
            rank_zero_warn(silent_line(silent, self._silent.steps))

    def restore_networks(self, *, compare_all: bool = False) -> None:
        """Restore the statistics of auxiliary networks.

        Args:
            compare_all: Whether to compare the values of all parameters instead of a few, to detect
                networks that the user updates.
        """
        report_restored(self._fixed.restore(compare_all=compare_all))

    def restore_in_checkpoint(self, state_dict: dict[str, Any]) -> None:
        """Put the statistics of auxiliary networks into a checkpoint."""
        self._fixed.restore_in_checkpoint(state_dict)

    def finish(self) -> None:
        """Check once more at the end of training."""
        self.restore_networks(compare_all=True)
        if silent := self._silent.finish():
            rank_zero_warn(silent_line(silent, self._silent.steps))

    def _refuse_exchanged(self) -> None:
        if self._watch.is_unchanged():
            return
        if not self._modules_only:
            refuse_exchanged_in_training(
                self._parameters,
                parameters_by_name(self._module),
                auxiliary=self._state.plan.auxiliary_networks,
                when=f"before step {self._trainer.global_step} in epoch"
                f" {self._trainer.current_epoch}",
            )
        self._watch = LayerWatch(self._module, modules_only=self._modules_only)
        self._state.freeze_modules(self._module)

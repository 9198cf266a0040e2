"""What is looked at while a run in phases trains, whatever the module's own code does."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lit_finetune.distributed.wrapping import exchanges_parameters, shards_parameters
from lit_finetune.freezing.fixed_networks import (
    FixedNetworks,
    restored_line,
    without_averaged_models,
)
from lit_finetune.freezing.layer_watch import LayerWatch, refuse_exchanged_in_training
from lit_finetune.freezing.silent_blocks import SilentBlocks, silent_line
from lit_finetune.freezing.trainable_state import TrainableState
from lit_finetune.modules.fsdp1 import parameters_by_name


class RunChecks:
    """Layers that are exchanged, blocks without a gradient, and networks beside that gather.

    Before a training begins there is nothing to look at.
    """

    def __init__(self) -> None:
        self._fixed = FixedNetworks({})
        self._silent = SilentBlocks()

    def begin(self, trainer: Trainer, pl_module: LightningModule, state: TrainableState) -> None:
        """Note what is there when a training begins.

        Args:
            trainer: Its training begins.
            pl_module: What it trains.
            state: What of it trains.
        """
        self._trainer, self._module, self._state = trainer, pl_module, state
        self._parameters = parameters_by_name(pl_module)
        self._modules_only = exchanges_parameters(trainer.strategy, trainer.precision_plugin)
        self._watch = LayerWatch(pl_module, modules_only=self._modules_only)
        self._silent = SilentBlocks()
        beside = [] if shards_parameters(trainer.strategy) else state.plan.auxiliary_networks
        self._fixed = FixedNetworks(without_averaged_models(pl_module, beside))
        self.begin_phase()

    def begin_phase(self) -> None:
        """Wait for gradients in what has begun to train."""
        if not shards_parameters(
            self._trainer.strategy
        ):  # else a process may hold nothing of a block
            self._silent.add(self._state.plan.blocks, self._state.newly_trained())

    def between_steps(self) -> None:
        """Look at what hooks have done, before a step or a phase.

        Raises:
            ValueError: They have exchanged or added layers.
        """
        self.keep_networks()
        self._refuse_exchanged()

    def before_step(self) -> None:
        """Look at what a step does, before the optimizer makes it.

        Raises:
            ValueError: It has exchanged or added layers, or goes against the schedule.
        """
        if self._module.automatic_optimization:  # else the module may freeze networks in turn
            self._state.refuse_changed()
        self._refuse_exchanged()
        self._fixed.restore_settled()  # what the forward pass has moved
        self._silent.check()
        if silent := self._silent.pop_silent():
            rank_zero_warn(silent_line(silent, self._silent.steps))

    def keep_networks(self, *, by_value: bool = False) -> None:
        """Keep the statistics of networks that nobody trains.

        Args:
            by_value: Whether it is asked by values which of them somebody moves.
        """
        if moved := self._fixed.restore(by_value=by_value):
            rank_zero_info(restored_line(moved))

    def finish(self) -> None:
        """Say what the training has not made clear before."""
        self.keep_networks(by_value=True)
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

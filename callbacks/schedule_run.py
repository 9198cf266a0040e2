"""A schedule in one fit: its plan, the current phase, and all that a phase changes."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lit_finetune.distributed.fsdp2 import reshard
from lit_finetune.distributed.wrapping import rewrap
from lit_finetune.freezing.freeze import restore_trainable
from lit_finetune.freezing.trainable_state import TrainableState
from lit_finetune.modules.compiled import forget_graphs
from lit_finetune.modules.fsdp1 import parameters_by_name
from lit_finetune.optim.phase_groups import PhaseGroups
from lit_finetune.schedules.checkpoint_state import load_progress, save_progress
from lit_finetune.schedules.triggers import Position, Progress

from .best_weights import best_weights, restore_best_weights
from .compatibility import has_finder, refuse_changed_layers, schedulers_of
from .planning import ScheduleRequest, first_plan, plan_without, unoptimized_networks
from .run_checks import RunChecks
from .trainer_state import (
    log_fixed_networks,
    log_overruled,
    log_phase,
    observe_validation,
    phase_groups,
    position,
    refuse_earlier_phase,
    with_length,
)


class ScheduleRun:
    """Applies a schedule to the module of one fit; the callback calls it in Lightning's hooks.

    Args:
        trainer: The Trainer of the fit.
        pl_module: The module that it trains; its layers exist.
        request: The user's schedule.
        earlier: The run of the fit before, which a second fit continues.
    """

    def __init__(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        request: ScheduleRequest,
        earlier: "ScheduleRun | None",
    ) -> None:
        self.request = request
        self.plan = plan = first_plan(trainer, pl_module, request)
        self.state = TrainableState(plan, train_bn=request.train_bn)
        here = position(trainer)
        continued = earlier if earlier and here != Position(0, 0) else None
        progress = continued.progress if continued else Progress()
        self.progress: Progress = progress.advance(plan.index_at(*here), here)
        self.best_weights: dict[str, Tensor] = continued.best_weights if continued else {}
        self.groups: PhaseGroups | None = None
        self.checks = RunChecks()
        self._max_epochs = trainer.max_epochs
        self._parameters = parameters_by_name(pl_module)
        self._requires_grad = {n: p.requires_grad for n, p in self._parameters.items()}
        self._overruled: set[str] = set()

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Apply the first phase before the strategy wraps the module: DDP reads `requires_grad`."""
        self.state.apply_phase(pl_module, self.progress.phase)
        self._freeze_for_finder(trainer, pl_module)

    def exclude_unoptimized(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Plan again without the networks that no optimizer holds."""
        names = unoptimized_networks(trainer, pl_module, self._requires_grad)
        if tuple(names) != self.plan.unoptimized_networks:
            self._plan_without(trainer, pl_module, names)
            rewrap(trainer.strategy, pl_module)
            self._freeze_for_finder(trainer, pl_module)

    def load(self, trainer: Trainer, pl_module: LightningModule, state: dict[str, Any]) -> None:
        """Continue at the phase of a checkpoint.

        Args:
            trainer: The Trainer of the fit.
            pl_module: The module that it trains.
            state: The callback's state in the checkpoint.
        """
        names = state.get("left_out", [])
        if names != list(self.plan.unoptimized_networks):
            self._plan_without(trainer, pl_module, names)
        self.progress = load_progress(self.plan, state, train_bn=self.request.train_bn)
        has_best = self.progress.stall.best is not None
        self.best_weights = state.get("best_weights", {}) if has_best else {}
        self.state.apply_phase(pl_module, self.progress.phase)
        self._freeze_for_finder(trainer, pl_module)

    def load_before_shards(
        self, trainer: Trainer, pl_module: LightningModule, state: dict[str, Any]
    ) -> None:
        """Change the groups to the phase of a checkpoint before its shards are read."""
        current = self.progress.phase
        self.load(trainer, pl_module, state)
        refuse_earlier_phase(self.progress.phase, current)
        self._move_groups(pl_module, range(current + 1, self.progress.phase + 1))

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the optimizers, and change their groups to the current phase."""
        self.refuse_changed_layers(trainer)
        self.groups = phase_groups(trainer, self.plan)
        self._move_groups(pl_module, range(self.progress.phase + 1))

    def begin_training(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Enforce the current phase and log it, just before the first batch."""
        self._requires_grad = {}
        self.plan = with_length(trainer, self.plan, self._max_epochs)
        log_overruled(self.state.enforce(), self._overruled)
        self.state.freeze_modules(pl_module)
        log_phase(trainer, self.plan, self.progress)
        log_fixed_networks(self.plan)
        self.refuse_changed_layers(trainer)
        self.checks.begin(trainer, pl_module, self.state)

    def refuse_changed_layers(self, trainer: Trainer) -> None:
        """Refuse layers that hooks exchanged after the plan was made.

        Raises:
            ValueError: Names them.
        """
        refuse_changed_layers(trainer, self._parameters)

    def set_schedulers(self, trainer: Trainer) -> None:
        """Use the schedulers of now: StochasticWeightAveraging replaces them during a run."""
        assert self.groups is not None, "Lightning calls on_fit_start() first"
        self.groups.set_schedulers(schedulers_of(trainer))

    def enforce(self) -> None:
        """Set again what other hooks changed, just before a batch.

        Raises:
            ValueError: They exchanged layers.
        """
        self.checks.before_batch()
        log_overruled(self.state.enforce(), self._overruled)

    def advance(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the phases that are due; several may be due at once."""
        here, first = position(trainer), self.progress.phase + 1
        target = self.plan.next_index(self.progress, here)
        if target < first:
            return
        self.checks.before_batch()
        reshard(pl_module)
        best, self.best_weights = trainer.strategy.broadcast(self.best_weights), {}
        if self.plan.phases[first].entry.restore_best:
            restore_best_weights(pl_module, best, self.progress.stall)
        self.progress = self.progress.advance(target, here)
        self._move_groups(pl_module, range(first, target + 1))
        self.state.apply_phase(pl_module, self.progress.phase)
        rewrap(trainer.strategy, pl_module)
        forget_graphs()  # compiled graphs of the last phase lack the new gradients
        self.state.freeze_modules(pl_module)
        self.checks.begin_phase()
        log_phase(trainer, self.plan, self.progress)

    def observe_validation(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the metric that the next phase waits for, and the best weights if it needs them."""
        before = self.progress
        self.progress = observe_validation(trainer, self.plan, before)
        is_better = self.progress.stall.best != before.stall.best
        if is_better and self.plan.phases[before.phase + 1].entry.restore_best:
            self.best_weights = best_weights(trainer, pl_module, self.state)

    def state_dict(self) -> dict[str, Any]:
        """The state from which `load` continues."""
        state = save_progress(self.plan, self.progress, train_bn=self.request.train_bn)
        return {**state, "best_weights": self.best_weights} if self.best_weights else state

    def restore_trainable(self, pl_module: LightningModule) -> None:
        """Restore `requires_grad` where the fit ends before training, as in the Tuner."""
        restore_trainable(pl_module, self._requires_grad)

    def close(self) -> None:
        """Remove everything from the module and the optimizers; plan and progress stay."""
        self.state.release()
        if self.groups:
            self.groups.remove()
        self.groups, self._parameters, self._requires_grad = None, {}, {}
        self.checks = RunChecks()

    def _plan_without(self, trainer: Trainer, pl_module: LightningModule, names: list[str]) -> None:
        self.state.release()
        self.plan = plan_without(trainer, pl_module, self.request, names, self._requires_grad)
        self.state = TrainableState(self.plan, train_bn=self.request.train_bn)
        self.state.apply_phase(pl_module, self.progress.phase)

    def _freeze_for_finder(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if has_finder(trainer):  # otherwise later: Lightning would warn of modules in eval mode
            self.state.freeze_modules(pl_module)

    def _move_groups(self, pl_module: LightningModule, phases: range) -> None:
        assert self.groups is not None, "Lightning calls on_fit_start() first"
        for index in phases:
            norms = self.state.norms(pl_module)
            self.groups.move_to(index, self.plan, self.progress, norms=norms)

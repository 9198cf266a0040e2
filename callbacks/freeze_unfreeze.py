"""Freeze a network, and unfreeze it block by block."""

from functools import partial
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from typing_extensions import override

from lit_finetune.distributed.fsdp2 import reshard
from lit_finetune.distributed.wrapping import (
    hook_batch_start,
    hook_setup,
    prepare_before_load,
    prepare_sharded_fit,
    remove_hooks,
    rewrap,
    shards_parameters,
)
from lit_finetune.freezing.freeze import restore_trainable
from lit_finetune.freezing.trainable_state import TrainableState
from lit_finetune.loading.loader_order import make_reloaded_repeatable
from lit_finetune.modules.compiled import forget_graphs
from lit_finetune.modules.fsdp1 import parameters_by_name
from lit_finetune.optim.phase_groups import PhaseGroups
from lit_finetune.resuming.run_state import RunState, end_epoch, load_run, save_run, start_run
from lit_finetune.schedules.checkpoint_state import load_progress, save_progress
from lit_finetune.schedules.messages import unreached_line
from lit_finetune.schedules.parse import read_schedule
from lit_finetune.schedules.plan import Plan
from lit_finetune.schedules.strategies import split_strategy
from lit_finetune.schedules.triggers import Position, Progress

from .best_weights import back_to_best, best_weights
from .compatibility import (
    check_compatibility,
    has_finder,
    prepare_other_callbacks,
    refuse_changed_layers,
    schedulers_of,
)
from .run_checks import RunChecks
from .trainer_state import (
    first_plan,
    is_trial,
    networks_left_out,
    observed,
    phase_groups,
    plan_without,
    position,
    refuse_earlier_phase,
    tell,
    tell_overruled,
    tell_what_stays,
    with_length,
)


class FreezeUnfreezeCallback(Callback):
    """Train the blocks that a schedule names, from the time it names, and keep the others frozen.

    Works with any `LightningModule` and the optimizer that it makes. Frozen parameters have no
    gradient and are taken out of the optimizer; their modules are in eval mode. When they start
    to train, they are registered as named groups, with the options that the module gave them and
    at a rate that stays in proportion to the first group's under any scheduler. Under DDP the
    wrapper is built again at each change. A resumed run ends as if it had never been stopped.

    Args:
        schedule: One of three. A mapping from epoch to what starts to train then, such as
            `{0: head, 2: layer4, 5: all}`: a selector, a list of selectors, or
            `{modules, lr, lr_scale}`. Selectors are block names, block indices (`-1`, `-2:`),
            module names, globs (`layer4.*`), regular expressions (`re:…`), `children[:n]`,
            `norms`, `biases` and `all`, which means the rest. Or the name of a strategy,
            `head_only`, `full`, `gradual`, `lp_ft`, `last_n`, `first_n_frozen`, `norm_only`,
            `bitfit`, with its arguments as `{gradual: {every: 2}}`. Or a list of entries
            `{modules, lr, lr_scale, freeze, restore_best, warmup_steps}`, each of which begins at
            an `epoch`, at a `step` of the optimizer, after the share `at` of the run, or when a
            validation metric stalls,
            `on_plateau: {monitor, mode, patience, min_delta, max_epochs}`; the first begins at
            the start. `freeze` selects what stops training; `restore_best` restores the best
            weights of the phase before; over `warmup_steps` the rate of the new groups rises.
        train_bn: Whether normalisation layers train in frozen blocks too, statistics and weights,
            in groups of their own.

    Raises:
        ValueError: The schedule cannot be read; or, when training is about to start, does not fit
            the network or the run; or, when validation first ends, watches what nobody logs.
    """

    def __init__(
        self, schedule: str | dict[Any, Any] | list[dict[str, Any]], train_bn: bool = False
    ) -> None:
        self.schedule = schedule
        self.train_bn = train_bn
        self.plan: Plan | None = None
        strategy = split_strategy(schedule)
        phases = () if strategy or isinstance(schedule, str) else read_schedule(schedule)
        self._given = strategy, phases, train_bn
        self._progress = Progress()
        self._best: dict[str, Tensor] = {}
        self._groups: PhaseGroups | None = None
        self._state: TrainableState | None = None
        self._checks = RunChecks()
        self._planned_with: dict[str, nn.Parameter] | None = None
        self._told: set[str] = set()
        self._before: dict[str, bool] = {}
        self._resumed: RunState | None = None
        self._max_epochs: int | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            prepare_before_load(trainer.strategy, None)
            return
        check_compatibility(trainer)
        self._max_epochs = trainer.max_epochs
        self.plan, self._resumed = None, None
        remove_hooks(trainer.strategy)
        if shards_parameters(
            trainer.strategy
        ):  # layers are sharded before the strategy's own setup
            if is_overridden("configure_model", pl_module):
                pl_module.configure_model()  # Lightning calls it once more
            self._make_plan(trainer, pl_module)
        else:
            both = (partial(each, trainer, pl_module) for each in (self._make_plan, self._revise))
            hook_setup(trainer.strategy, *both)

    def _make_plan(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Plan what trains, once the module's own hooks have built its layers."""
        if self.plan is not None:
            return
        self.plan = plan = first_plan(trainer, pl_module, *self._given)
        self._state = TrainableState(plan, train_bn=self.train_bn)
        here = position(trainer)
        if here == Position(0, 0):  # else a second `fit` goes on
            self._progress, self._best = Progress(), {}
        self._progress = self._progress.advance(plan.index_at(*here), here)
        prepare_sharded_fit(
            trainer.strategy, pl_module, plan, partial(self._prepare, trainer, pl_module)
        )
        self._planned_with = parameters_by_name(pl_module)
        self._before = {n: p.requires_grad for n, p in self._planned_with.items()}
        # Before the strategy wraps the module: DDP takes note of what requires a gradient.
        self._trains().apply_phase(pl_module, self._progress.phase)
        if has_finder(trainer):  # else later: Lightning would warn of modules in eval mode
            self._trains().freeze_modules(pl_module)

    def _revise(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Plan anew where the optimizers tell of networks that no schedule is about."""
        found = networks_left_out(trainer, pl_module, self._before)
        if self._resumed is None and tuple(found) != self._planned().unoptimized_networks:
            self._leave_out(trainer, pl_module, found)
            rewrap(trainer.strategy, pl_module)
            if has_finder(trainer):
                self._trains().freeze_modules(pl_module)

    def _leave_out(self, trainer: Trainer, pl_module: LightningModule, names: list[str]) -> None:
        """Plan anew, without networks that no optimizer holds; these are as they were before."""
        self._trains().release()
        self.plan = plan_without(trainer, pl_module, self._given, names, before=self._before)
        self._state = TrainableState(self.plan, train_bn=self.train_bn)
        self._trains().apply_phase(pl_module, self._progress.phase)

    @override
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        self._make_plan(trainer, pl_module)
        self._resumed = load_run(trainer, checkpoint)
        self._take_up(trainer, pl_module, checkpoint)
        if has_finder(trainer):
            self._trains().freeze_modules(pl_module)

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._checks.keep_networks()
        save_run(trainer, checkpoint)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        refuse_changed_layers(trainer, self._planned_with or {})
        self._groups = phase_groups(trainer, self._planned())
        for index in range(self._progress.phase + 1):
            self._regroup(index, pl_module)
        prepare_other_callbacks(trainer)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        start_run(trainer, self._resumed)
        self._before = {}
        self.plan = plan = with_length(trainer, self._planned(), self._max_epochs)
        tell_overruled(self._trains().enforce(), self._told)
        self._trains().freeze_modules(pl_module)
        tell(trainer, self._planned(), self._progress)
        tell_what_stays(plan)
        refuse_changed_layers(trainer, self._planned_with or {})
        self._checks.begin(trainer, pl_module, self._trains())
        hook_batch_start(trainer.strategy, self._enforce)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        make_reloaded_repeatable(trainer)
        self._follow(trainer)
        self._move_on(trainer, pl_module)
        self._trains().enforce()

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._follow(trainer)  # callbacks behind this one have had their epoch's start, too
        if batch_idx % trainer.accumulate_grad_batches == 0:  # no gradient is waiting for its step
            self._move_on(trainer, pl_module)

    def _enforce(self) -> None:
        """What other hooks have set otherwise is as the schedule says when the batch trains."""
        self._checks.between_steps()
        tell_overruled(self._trains().enforce(), self._told)

    @override
    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        self._trains().refuse_unused(loss)

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        self._checks.before_step()

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._checks.keep_networks()

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        plan, before = self._planned(), self._progress
        self._progress = observed(trainer, plan, before)
        is_better = self._progress.stall.best != before.stall.best
        if is_better and plan.phases[before.phase + 1].entry.restore_best:
            self._best = best_weights(trainer, pl_module, self._trains())

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._checks.keep_networks(by_value=True)
        end_epoch(trainer, self._resumed)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._checks.finish()
        if not is_trial(trainer) and (line := unreached_line(self._planned(), self._progress)):
            rank_zero_info(line)

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._restore(trainer)  # there will be no teardown, and maybe another run

    @override
    def state_dict(self) -> dict[str, Any]:
        if self.plan is None:
            return {}
        state = save_progress(self.plan, self._progress, train_bn=self.train_bn)
        return {**state, "best_weights": self._best} if self._best else state

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # A run of the Tuner ends before training begins, and leaves no trace.
        reshard(pl_module)
        restore_trainable(pl_module, self._before)
        self._restore(trainer)

    def _prepare(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Bring the groups to the phase of a checkpoint whose shards will be read next."""
        begun = self._progress.phase
        self._take_up(trainer, pl_module, checkpoint)
        refuse_earlier_phase(self._progress.phase, begun)
        for index in range(begun + 1, self._progress.phase + 1):
            self._regroup(index, pl_module)

    def _take_up(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go on where the run of a checkpoint was."""
        state = checkpoint["callbacks"].get(self.state_key) or {}
        left_out = state.get("left_out", [])
        if left_out != list(self._planned().unoptimized_networks):
            self._leave_out(trainer, pl_module, left_out)
        self._progress = load_progress(self._planned(), state, train_bn=self.train_bn)
        self._best = state.get("best_weights", {}) if self._progress.stall.best is not None else {}
        self._trains().apply_phase(pl_module, self._progress.phase)

    def _planned(self) -> Plan:
        assert self.plan is not None, "Lightning calls setup() first"
        return self.plan

    def _trains(self) -> TrainableState:
        assert self._state is not None, "Lightning calls setup() first"
        return self._state

    def _move_on(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the phases that are due."""
        here, first = position(trainer), self._progress.phase + 1
        target = self._planned().next_index(self._progress, here)
        if target < first:
            return
        self._checks.between_steps()
        reshard(pl_module)
        best, self._best = trainer.strategy.broadcast(self._best), {}
        if self._planned().phases[self._progress.phase + 1].entry.restore_best:
            back_to_best(pl_module, best, self._progress.stall)
        self._progress = self._progress.advance(target, here)
        for index in range(first, target + 1):
            self._regroup(index, pl_module)
        self._trains().apply_phase(pl_module, self._progress.phase)
        rewrap(trainer.strategy, pl_module)
        forget_graphs()  # those of the last phase lack the new gradients
        self._trains().freeze_modules(pl_module)
        self._checks.begin_phase()
        tell(trainer, self._planned(), self._progress)

    def _regroup(self, index: int, pl_module: LightningModule) -> None:
        """Bring the optimizers' groups from the phase before to the phase of this index."""
        assert self._groups is not None, "Lightning calls on_fit_start() first"
        self._groups.move_to(
            index, self._planned(), self._progress, norms=self._trains().norms(pl_module)
        )

    def _follow(self, trainer: Trainer) -> None:
        assert self._groups is not None, "Lightning calls on_fit_start() first"
        self._groups.set_schedulers(schedulers_of(trainer))

    def _restore(self, trainer: Trainer) -> None:
        remove_hooks(trainer.strategy)
        if self._state:
            self._state.release()
        if self._groups:
            self._groups.remove()
        self._groups, self._planned_with, self._before = None, None, {}
        self._checks = RunChecks()

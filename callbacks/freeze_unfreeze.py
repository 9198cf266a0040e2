"""Freeze a network, and unfreeze it block by block."""

from functools import partial
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from typing_extensions import override

from lit_finetune.distributed.fsdp2 import reshard
from lit_finetune.distributed.wrapping import (
    hook_batch_start,
    hook_setup,
    prepare_before_load,
    prepare_sharded_fit,
    remove_hooks,
    shards_parameters,
)
from lit_finetune.loading.loader_order import make_reloaded_repeatable
from lit_finetune.resuming.run_state import RunState, end_epoch, load_run, save_run, start_run
from lit_finetune.schedules.messages import unreached_line
from lit_finetune.schedules.plan import Plan

from .compatibility import check_compatibility, prepare_other_callbacks
from .planning import ScheduleRequest
from .schedule_run import ScheduleRun
from .trainer_state import is_trial


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
        self._request = ScheduleRequest.parse(schedule, train_bn=train_bn)
        self._run: ScheduleRun | None = None
        self._earlier_run: ScheduleRun | None = None
        self._resumed: RunState | None = None

    @property
    def plan(self) -> Plan | None:
        """The phases on the module's blocks; None before a fit has begun."""
        return self._run.plan if self._run else None

    @property
    def run(self) -> ScheduleRun:
        """The schedule in the current fit."""
        assert self._run is not None, "Lightning calls setup() first"
        return self._run

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            prepare_before_load(trainer.strategy, None)
            return
        check_compatibility(trainer)
        self._earlier_run, self._run = self._run or self._earlier_run, None
        self._resumed = None
        remove_hooks(trainer.strategy)
        if shards_parameters(trainer.strategy):  # before the strategy shards the layers
            if is_overridden("configure_model", pl_module):
                pl_module.configure_model()  # Lightning calls it once more
            self._make_plan(trainer, pl_module)
        else:
            both = (partial(each, trainer, pl_module) for each in (self._make_plan, self._revise))
            hook_setup(trainer.strategy, *both)

    def _make_plan(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Plan what trains, once the module's own hooks have built its layers."""
        if self._run is not None:
            return
        self._run = run = ScheduleRun(trainer, pl_module, self._request, self._earlier_run)
        self._earlier_run = None

        def load_before_shards(checkpoint: dict[str, Any]) -> None:
            run.load_before_shards(trainer, pl_module, self._state_in(checkpoint))

        prepare_sharded_fit(trainer.strategy, pl_module, run.plan, load_before_shards)
        run.prepare(trainer, pl_module)

    def _revise(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Plan again where the optimizers show networks that the schedule is not about."""
        if self._resumed is None:
            self.run.exclude_unoptimized(trainer, pl_module)

    def _state_in(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        return checkpoint["callbacks"].get(self.state_key) or {}

    @override
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        self._make_plan(trainer, pl_module)
        self._resumed = load_run(trainer, checkpoint)
        self.run.load(trainer, pl_module, self._state_in(checkpoint))

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._run:
            self._run.checks.restore_in_checkpoint(checkpoint["state_dict"])
        save_run(trainer, checkpoint)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.run.begin(trainer, pl_module)
        prepare_other_callbacks(trainer)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        start_run(trainer, self._resumed)
        self.run.begin_training(trainer, pl_module)
        hook_batch_start(trainer.strategy, self.run.enforce)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        make_reloaded_repeatable(trainer)
        self.run.set_schedulers(trainer)
        self.run.advance(trainer, pl_module)
        self.run.state.enforce()

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.run.set_schedulers(trainer)  # later callbacks have had their epoch's start, too
        if batch_idx % trainer.accumulate_grad_batches == 0:  # no gradient waits for its step
            self.run.advance(trainer, pl_module)

    @override
    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        self.run.state.refuse_unused(loss)

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        self.run.checks.before_step()

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._run:
            self._run.checks.restore_networks()

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self.run.observe_validation(trainer, pl_module)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.run.checks.restore_networks(compare_all=True)
        end_epoch(trainer, self._resumed)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.run.checks.finish()
        line = unreached_line(self.run.plan, self.run.progress)
        if line and not is_trial(trainer):
            rank_zero_info(line)

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._close(trainer)  # Lightning calls no teardown, and another fit may follow

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        reshard(pl_module)
        if self._run:
            self._run.restore_trainable(pl_module)
        self._close(trainer)

    def _close(self, trainer: Trainer) -> None:
        remove_hooks(trainer.strategy)
        if self._run:
            self._run.close()

    @override
    def state_dict(self) -> dict[str, Any]:
        return self._run.state_dict() if self._run else {}

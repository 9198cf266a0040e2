"""Freeze a network, and unfreeze it block by block."""

import sys
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from typing_extensions import override

from lit_finetune.admission import GroupKeeper
from lit_finetune.averaging import Statistics, give_back, take_statistics
from lit_finetune.blocks import list_blocks
from lit_finetune.distributed import refuse_unsupported, wrap_again
from lit_finetune.freezing import frozen_modules, hold, norm_parameters, release, set_trainable
from lit_finetune.plan import Plan, make_plan
from lit_finetune.schedule import parse_schedule
from lit_finetune.strategies import make_schedule, split_strategy

from .beside import has_finder, keep_averages_exact, schedulers_of


class FreezeUnfreezeCallback(Callback):
    """Train what the schedule says, from the epoch on that it says, and hold all else frozen.

    Works with any `LightningModule`. Whatever the module's optimizer holds, frozen parameters are
    taken out of it, and registered as new named groups when they start to train: with the options
    that the module gave them, at a rate that stays in proportion to the first group's under any
    scheduler. Frozen modules stay in eval mode, without a gradient. Under DDP the wrapper is built
    anew at each change. A resumed run goes on as if it had never stopped.

    Args:
        schedule: From epoch to what starts to train then, such as
            `{0: head, 2: layer4, 5: all}`. A value is a selector, a list of selectors, or
            `{modules, lr, lr_scale}`. Selectors are block names, block indices (`-1`, `-2:`),
            module names, globs (`layer4.*`), regular expressions (`re:…`), `children[:n]` and
            `all`, which means the rest. Or the name of a strategy, `head_only`, `full`, `gradual`,
            `lp_ft`, `last_n`, `first_n_frozen`, with its arguments as `{gradual: {every: 2}}`.
        train_bn: Whether normalisation layers train in frozen blocks too, statistics and weights,
            in groups of their own.

    Raises:
        ValueError: The schedule cannot be read; or, when training is about to start, does not fit
            the network or the run.
    """

    def __init__(self, schedule: str | dict[Any, Any], train_bn: bool = False) -> None:
        self.schedule = schedule
        self.train_bn = train_bn
        self.plan: Plan | None = None
        self._strategy = split_strategy(schedule)
        self._phases = (
            parse_schedule(schedule) if isinstance(schedule, dict) and not self._strategy else ()
        )
        self._phase = 0
        self._groups: GroupKeeper | None = None
        self._frozen: list[nn.Module] = []
        self._statistics: list[Statistics] = []
        self._before: dict[str, bool] = {}

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        refuse_unsupported(trainer.strategy)
        self.plan = self._make_plan(trainer, pl_module)
        self._phase = self.plan.index_at(trainer.current_epoch)
        self._before = {n: p.requires_grad for n, p in pl_module.named_parameters()}
        # Before the strategy wraps the module: DDP takes note of what requires a gradient.
        set_trainable(pl_module, self._trainable(pl_module))
        if has_finder(trainer):  # else later: Lightning would warn of modules in eval mode
            self._hold_anew(pl_module)

    @override
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        state = checkpoint["callbacks"].get(self.state_key)
        self._refuse_other_schedule(state)
        self._phase = state["phase"]
        set_trainable(pl_module, self._trainable(pl_module))
        if has_finder(trainer):
            self._hold_anew(pl_module)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        plan = self._planned()
        self._groups = GroupKeeper(
            trainer.optimizers,
            schedulers_of(trainer),
            dict(pl_module.named_parameters()),
            {name: block.name for block in plan.blocks for name in block.parameters},
        )
        norms = norm_parameters(pl_module) - plan.trainable(0) if self.train_bn else ()
        self._groups.start(plan.phases[0].admissions, sorted(norms))
        for index in range(1, self._phase + 1):
            self._admit(index)
        keep_averages_exact(trainer)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._before = {}
        self._hold_anew(pl_module)
        self._tell(trainer, pl_module)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._follow(trainer)
        target = self._planned().index_at(trainer.current_epoch)
        if target > self._phase:
            while self._phase < target:
                self._phase += 1
                self._admit(self._phase)
            self._apply(trainer, pl_module)
            self._tell(trainer, pl_module)
        hold(self._frozen)

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._follow(trainer)  # callbacks behind this one have had their epoch's start, too
        hold(self._frozen)
        give_back(self._statistics)

    @override
    def state_dict(self) -> dict[str, Any]:
        if self.plan is None:
            return {}
        return {
            "phase": self._phase,
            "phases": self.plan.to_list(self._phase),
            "train_bn": self.train_bn,
        }

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # A run of the Tuner ends before training begins, and leaves no trace.
        for name, parameter in pl_module.named_parameters():
            parameter.requires_grad_(self._before.get(name, parameter.requires_grad))
        self._let_go()

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._let_go()  # there will be no teardown, and maybe another run

    def _make_plan(self, trainer: Trainer, pl_module: LightningModule) -> Plan:
        blocks = getattr(pl_module, "blocks", None) or list_blocks(pl_module)
        limit = trainer.max_epochs if trainer.max_epochs != -1 else None
        phases = self._phases
        if self._strategy:
            name, arguments = self._strategy
            names = [block.name for block in blocks]
            phases = make_schedule(name, arguments, block_names=names, max_epochs=limit)
        # A trial run of one epoch may use the schedule of the long one. (mypy knows no attribute.)
        is_trial = bool(getattr(trainer, "fast_dev_run", False))
        return make_plan(phases, blocks, None if is_trial else limit)

    def _planned(self) -> Plan:
        assert self.plan is not None, "Lightning calls setup() first"
        return self.plan

    def _trainable(self, pl_module: LightningModule) -> frozenset[str]:
        names = self._planned().trainable(self._phase)
        return names | norm_parameters(pl_module) if self.train_bn else names

    def _admit(self, index: int) -> None:
        assert self._groups is not None, "Lightning calls on_fit_start() first"
        for admission in self._planned().phases[index].admissions:
            self._groups.admit(admission)

    def _follow(self, trainer: Trainer) -> None:
        assert self._groups is not None, "Lightning calls on_fit_start() first"
        self._groups.follow(schedulers_of(trainer))

    def _apply(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the parameters of the phase train; whoever took note of the old ones starts anew."""
        set_trainable(pl_module, self._trainable(pl_module))
        wrap_again(trainer.strategy, pl_module)
        if dynamo := sys.modules.get("torch._dynamo"):
            dynamo.reset()  # compiled graphs of the last phase lack the new gradients
        self._hold_anew(pl_module)

    def _hold_anew(self, pl_module: LightningModule) -> None:
        """Hold what is frozen now, and free what is no longer."""
        before = self._frozen
        blocks = self._planned().blocks
        self._frozen = frozen_modules(pl_module, blocks, norms_train=self.train_bn)
        release(before)
        hold(self._frozen)
        self._statistics = take_statistics(self._frozen)

    def _let_go(self) -> None:
        release(self._frozen)
        self._groups, self._frozen, self._statistics, self._before = None, [], [], {}

    def _refuse_other_schedule(self, state: Mapping[str, Any] | None) -> None:
        """The phases that lie behind must be the same ones; what comes later may change."""
        if not state:
            raise ValueError(
                "The checkpoint was written without FreezeUnfreezeCallback, so its optimizer does"
                " not fit the schedule. To start from its weights alone, pass it as `weights`."
            )
        if state["train_bn"] != self.train_bn:
            raise ValueError(
                f"The checkpoint was written with train_bn={state['train_bn']}, but now it is"
                f" {self.train_bn}. Resume with the same value."
            )
        plan = self._planned()
        ours = plan.to_list(state["phase"])
        if ours != state["phases"]:
            then, now = (
                ", ".join(str(phase["epoch"]) for phase in phases)
                for phases in (state["phases"], ours)
            )
            raise ValueError(
                "The checkpoint was written under another schedule: its phases so far began at"
                f" epochs {then}; those of this run at {now}, or with other parameters or rates."
                " Resume with the same schedule up to this point, or start anew from its weights"
                " alone, passed as `weights`."
            )

    def _tell(self, trainer: Trainer, pl_module: LightningModule) -> None:
        phase = self._planned().phases[self._phase]
        sizes = [(p.numel(), p.requires_grad) for p in pl_module.parameters()]
        total, trained = sum(n for n, _ in sizes), sum(n for n, trains in sizes if trains)
        rates = {
            str(group.get("name", f"pg{index + 1}")).split("/")[0]: f"{float(group['lr']):.3g}"
            for optimizer in trainer.optimizers
            for index, group in enumerate(optimizer.param_groups)
        }
        rank_zero_info(
            f"Epoch {trainer.current_epoch}: training {phase.label} (since epoch {phase.epoch});"
            f" {trained:,} of {total:,} parameters train ({trained / total:.1%}). Learning rates: "
            + ", ".join(f"{name} {rate}" for name, rate in rates.items())
        )

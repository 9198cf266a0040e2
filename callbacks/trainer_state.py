"""What a run is to be: its plan, where it stands, and how long it is."""

import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from lit_finetune._errors import some_of
from lit_finetune.blocks.block import Block, list_blocks
from lit_finetune.classifier import FinetuneClassifier
from lit_finetune.distributed.wrapping import shards_parameters
from lit_finetune.freezing.auxiliary_networks import (
    find_auxiliary_networks,
    named_auxiliary_parameters,
    parameters_within,
    without_modules,
)
from lit_finetune.freezing.freeze import restore_trainable, with_user_frozen
from lit_finetune.freezing.parallel_networks import (
    parallel_trained_networks,
    parallel_unoptimized_networks,
)
from lit_finetune.freezing.trainable_state import refuse_lazy
from lit_finetune.modules.fsdp1 import full_sizes, parameters_by_name
from lit_finetune.optim.phase_groups import PhaseGroups
from lit_finetune.schedules.messages import auxiliary_line, phase_line, user_frozen_line
from lit_finetune.schedules.phases import Schedule
from lit_finetune.schedules.plan import Plan, make_plan
from lit_finetune.schedules.run_length import fit_to_length, needs_length
from lit_finetune.schedules.strategies import make_schedule
from lit_finetune.schedules.triggers import Position, Progress, observe, refuse_unlogged

from .compatibility import has_probe, refuse_incompatible, schedulers_of


def tell(trainer: Trainer, plan: Plan, progress: Progress) -> None:
    """Say which phase has begun, and at which rates."""
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    whole = full_sizes(trainer.model or trainer.lightning_module)
    sizes = [(whole[id(p)], p.requires_grad) for p in trainer.lightning_module.parameters()]
    rank_zero_info(phase_line(plan, progress, position(trainer), sizes=sizes, groups=groups))


def tell_what_stays(plan: Plan) -> None:
    """Say what was fixed before, and which networks are beside the one that trains."""
    for line in filter(None, (user_frozen_line(plan), auxiliary_line(plan))):
        rank_zero_info(line)


def tell_overruled(names: Sequence[str], told: set[str]) -> None:
    """Say once of each parameter that its `requires_grad` was set against the schedule."""
    if new := [name for name in names if name not in told]:
        told.update(new)
        rank_zero_info(
            "A hook of the module, or another callback, set `requires_grad` against the schedule;"
            f" the schedule decides: {some_of(new, 3)}."
        )


def first_plan(
    trainer: Trainer,
    pl_module: LightningModule,
    strategy: tuple[str, dict[str, Any]] | None,
    phases: Schedule,
    train_bn: bool,
) -> Plan:
    """A plan before there are optimizers, which will tell what of the module is left out.

    Where the schedule does not fit the module as it is, but one of several networks that run side
    by side, a plan for that; whether it stays is seen when there are optimizers. The arguments are
    those of `plan_for`.
    """
    try:
        return plan_for(trainer, pl_module, strategy, phases, train_bn)
    except ValueError:
        networks = (
            () if shards_parameters(trainer.strategy) else parallel_trained_networks(pl_module)
        )
        for kept in networks:
            left_out = [name for name in networks if name != kept]
            with suppress(ValueError):
                return plan_for(trainer, pl_module, strategy, phases, train_bn, left_out)
        raise


def plan_for(
    trainer: Trainer,
    pl_module: LightningModule,
    strategy: tuple[str, dict[str, Any]] | None,
    phases: Schedule,
    train_bn: bool,
    left_out: Sequence[str] = (),
) -> Plan:
    """What trains when: the schedule on the blocks of this module, checked against the run.

    Args:
        trainer: Of the run.
        pl_module: Its module.
        strategy: The name of a schedule, and its arguments.
        phases: The schedule, where it has no name.
        train_bn: Whether normalisation layers train in frozen blocks, too.
        left_out: Networks in the module that no optimizer holds.
    """
    blocks, sides = _blocks_of(pl_module, phases, left_out)
    if train_bn and any(block.fixed for block in blocks):
        raise ValueError(
            "`train_bn` would train normalisation layers, but beside adapters (`lora`) the"
            " network's own weights stay frozen: leave it out."
        )
    limit = trainer.max_epochs if trainer.max_epochs != -1 else None
    if strategy:
        name, arguments = strategy
        names = [block.name for block in blocks if {*block.free} - {*block.user_frozen}]
        phases = make_schedule(
            name, arguments, block_names=names, max_epochs=limit, is_probed=has_probe(trainer)
        )
    # A trial run of one epoch may use the schedule of the long one.
    plan = make_plan(phases, blocks, None if is_trial(trainer) else limit)
    auxiliary = parameters_within(pl_module, sides)
    plan = replace(
        plan,
        auxiliary=auxiliary,
        auxiliary_networks=tuple(sides),
        unoptimized_networks=tuple(left_out),
    )
    refuse_incompatible(trainer, plan)
    if plan.monitors(0) and not trainer.enable_validation:
        raise ValueError(
            "`on_plateau` waits for a metric of validation, but there is none: give validation"
            " data and a `validation_step`, and leave `limit_val_batches` above 0."
        )
    return plan


def plan_without(
    trainer: Trainer,
    pl_module: LightningModule,
    given: tuple[tuple[str, dict[str, Any]] | None, Schedule, bool],
    names: Sequence[str],
    *,
    before: Mapping[str, bool],
) -> Plan:
    """A plan without some networks, which are as they were before any plan.

    Args:
        trainer: Of the run.
        pl_module: Its module.
        given: What else `plan_for` takes.
        names: Of the networks.
        before: Which parameters required a gradient.
    """
    plan = plan_for(trainer, pl_module, *given, names)
    auxiliary = {*plan.auxiliary}.intersection(before)
    restore_trainable(pl_module, {name: before[name] for name in auxiliary})
    return plan


def phase_groups(trainer: Trainer, plan: Plan) -> PhaseGroups:
    """The groups of a run's optimizers, before its first phase."""
    return PhaseGroups(
        trainer.optimizers,
        schedulers_of(trainer),
        parameters_by_name(trainer.lightning_module),
        plan,
        lambda: trainer.global_step,
    )


def networks_left_out(
    trainer: Trainer, pl_module: LightningModule, before: Mapping[str, bool]
) -> list[str]:
    """The networks beside one that trains of which no optimizer holds anything.

    Args:
        trainer: It has its optimizers.
        pl_module: What it trains.
        before: Which parameters required a gradient before the schedule came.
    """
    if shards_parameters(trainer.strategy):
        return []
    named = parameters_by_name(pl_module)
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    held = [parameter for group in groups for parameter in group["params"]]
    frozen = [name for name, trained in before.items() if trained and not named[name].requires_grad]
    return list(parallel_unoptimized_networks(pl_module, held, frozen))


def _blocks_of(
    pl_module: LightningModule, phases: Schedule, left_out: Sequence[str]
) -> tuple[list[Block], list[str]]:
    """The blocks of the network that trains, and the names of the networks beside it.

    What the schedule names, and no other network has, is not beside.
    """
    if next(pl_module.parameters(), None) is None:
        raise ValueError(
            f"{type(pl_module).__name__} has no parameters when its training is planned. Build"
            " layers in `__init__`, `setup` or `configure_model`."
        )
    refuse_lazy(pl_module)
    own = getattr(pl_module, "blocks", None)
    network = "backbone" if isinstance(pl_module, FinetuneClassifier) else None
    kinds = LightningModule | nn.ModuleDict
    sides = list(
        find_auxiliary_networks(
            pl_module, network=network, is_container=lambda each: isinstance(each, kinds)
        )
    )
    sides += [name for name in left_out if name not in sides]
    if not own and sides:
        with without_modules(pl_module, sides):
            own = list_blocks(pl_module)
        named = named_auxiliary_parameters(phases, own, list_blocks(pl_module))
        if kept := [s for s in sides if any(n.startswith(f"{s}.") for n in named)]:
            sides = [name for name in sides if name not in kept]
            with without_modules(pl_module, sides):
                own = list_blocks(pl_module)
    elif own and left_out:
        auxiliary = set(parameters_within(pl_module, sides))
        own = [each for each in own if not each.parameters or {*each.parameters} - auxiliary]
    return with_user_frozen(pl_module, own or list_blocks(pl_module)), sides


def position(trainer: Trainer) -> Position:
    """The epoch that trains, and the steps that are done."""
    return Position(trainer.current_epoch, trainer.global_step)


def refuse_earlier_phase(saved: int, begun: int) -> None:
    """Refuse to go back from the phase that a Trainer has begun to that of a checkpoint.

    Raises:
        ValueError: Says what to do.
    """
    if saved < begun:
        raise ValueError(
            "The Trainer is in a later phase than the checkpoint. Resume with a new Trainer."
        )


def is_trial(trainer: Trainer) -> bool:
    """Whether the run is a trial of a few batches."""
    return bool(getattr(trainer, "fast_dev_run", False))  # mypy knows no such attribute


def with_length(trainer: Trainer, plan: Plan, max_epochs: int | None) -> Plan:
    """The plan, with steps in the place of shares of the run; `max_epochs` is the user's."""
    if not needs_length(plan) or is_trial(trainer):
        return plan
    num_steps, epoch_steps = run_length(trainer, max_epochs)
    return fit_to_length(plan, num_steps=num_steps, epoch_steps=epoch_steps)


def run_length(trainer: Trainer, max_epochs: int | None) -> tuple[int | None, int | None]:
    """How many steps the optimizer makes in the run, and in an epoch; None if nobody knows.

    Args:
        trainer: Its training is about to begin.
        max_epochs: The user's. StochasticWeightAveraging adds one, in which nothing is trained.
    """
    callbacks = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
    if any(isinstance(callback, GradientAccumulationScheduler) for callback in callbacks):
        return None, None
    if not trainer.lightning_module.automatic_optimization:
        return None, None
    num_steps, batches = trainer.estimated_stepping_batches, trainer.num_training_batches
    epoch_steps = math.ceil(batches / trainer.accumulate_grad_batches) if batches < math.inf else 0
    if epoch_steps and max_epochs is not None and max_epochs > 0:
        num_steps = min(num_steps, epoch_steps * max_epochs)
    return int(num_steps) if 0 < num_steps < math.inf else None, epoch_steps or None


def observed(trainer: Trainer, plan: Plan, progress: Progress) -> Progress:
    """The progress once a validation has ended, where the next phase waits for a metric."""
    if not (monitors := plan.monitors(progress.phase)):
        return progress
    values = validated(trainer, monitors)
    if not (plateau := plan.plateau_at(progress.phase)):
        return progress
    stall = observe(progress.stall, values[plateau.monitor], plateau)
    return replace(progress, stall=stall)


def validated(trainer: Trainer, monitors: Collection[str]) -> Mapping[str, float]:
    """What a validation has given of these metrics, the same in all processes.

    One process decides for all, whether or not the metric is the same in each.

    Raises:
        ValueError: One of them was not logged.
    """
    logged = trainer.callback_metrics
    known = {name: float(logged[name]) for name in monitors if name in logged}
    values = trainer.strategy.broadcast(known)
    refuse_unlogged(monitors, values, logged)
    return values

"""The plan of a run: the user's schedule applied to the blocks of the module."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import nn

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
from lit_finetune.modules.fsdp1 import parameters_by_name
from lit_finetune.schedules.parse import read_schedule
from lit_finetune.schedules.phases import Schedule
from lit_finetune.schedules.plan import Plan, make_plan
from lit_finetune.schedules.strategies import make_schedule, split_strategy

from .compatibility import has_probe, refuse_incompatible
from .trainer_state import is_trial


@dataclass(frozen=True, slots=True)
class ScheduleRequest:
    """What the user asks for: a strategy by name, or phases."""

    strategy: tuple[str, dict[str, Any]] | None
    """A name and its arguments; None where phases are given."""
    phases: Schedule
    train_bn: bool
    """Whether normalisation layers train in frozen blocks, too."""

    @classmethod
    def parse(cls, schedule: Any, *, train_bn: bool) -> "ScheduleRequest":
        """The request for an argument `schedule`.

        >>> ScheduleRequest.parse({"gradual": {"every": 2}}, train_bn=False).strategy
        ('gradual', {'every': 2})

        Raises:
            ValueError: It is not a schedule.
        """
        strategy = split_strategy(schedule)
        has_phases = strategy is None and not isinstance(schedule, str)
        return cls(strategy, read_schedule(schedule) if has_phases else (), train_bn)


def first_plan(trainer: Trainer, pl_module: LightningModule, request: ScheduleRequest) -> Plan:
    """The plan before the optimizers exist, which will show the networks that are not optimized.

    Where the schedule fits only one of several parallel networks, the plan is for that one.

    Raises:
        ValueError: The schedule fits neither the module nor one of its networks.
    """
    try:
        return plan_for(trainer, pl_module, request)
    except ValueError:
        is_sharded = shards_parameters(trainer.strategy)
        networks = () if is_sharded else parallel_trained_networks(pl_module)
        for network in networks:
            others = [name for name in networks if name != network]
            with suppress(ValueError):
                return plan_for(trainer, pl_module, request, others)
        raise


def plan_for(
    trainer: Trainer,
    pl_module: LightningModule,
    request: ScheduleRequest,
    unoptimized: Sequence[str] = (),
) -> Plan:
    """The schedule applied to the blocks of a module, and checked against the run.

    Args:
        trainer: The Trainer of the run.
        pl_module: The module that it trains.
        request: The user's schedule.
        unoptimized: Networks in the module that no optimizer holds.

    Raises:
        ValueError: The schedule does not fit the module or the run.
    """
    blocks, auxiliary = _blocks_of(pl_module, request.phases, unoptimized)
    if request.train_bn and any(block.fixed for block in blocks):
        raise ValueError(
            "`train_bn` would train normalisation layers, but beside adapters (`lora`) the"
            " network's own weights stay frozen: leave it out."
        )
    limit = trainer.max_epochs if trainer.max_epochs != -1 else None
    phases = request.phases
    if request.strategy:
        name, arguments = request.strategy
        names = [block.name for block in blocks if {*block.free} - {*block.user_frozen}]
        phases = make_schedule(
            name, arguments, block_names=names, max_epochs=limit, is_probed=has_probe(trainer)
        )
    # A trial run of one epoch may use the schedule of the long one.
    plan = make_plan(phases, blocks, None if is_trial(trainer) else limit)
    plan = replace(
        plan,
        auxiliary=parameters_within(pl_module, auxiliary),
        auxiliary_networks=tuple(auxiliary),
        unoptimized_networks=tuple(unoptimized),
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
    request: ScheduleRequest,
    unoptimized: Sequence[str],
    requires_grad: Mapping[str, bool],
) -> Plan:
    """A plan that excludes some networks, and restores their `requires_grad`.

    Args:
        trainer: The Trainer of the run.
        pl_module: The module that it trains.
        request: The user's schedule.
        unoptimized: The networks to exclude.
        requires_grad: Of each parameter before the first plan.
    """
    plan = plan_for(trainer, pl_module, request, unoptimized)
    auxiliary = {*plan.auxiliary}.intersection(requires_grad)
    restore_trainable(pl_module, {name: requires_grad[name] for name in auxiliary})
    return plan


def unoptimized_networks(
    trainer: Trainer, pl_module: LightningModule, requires_grad: Mapping[str, bool]
) -> list[str]:
    """The parallel networks of which no optimizer holds a parameter.

    Args:
        trainer: Its optimizers exist.
        pl_module: The module that it trains.
        requires_grad: Of each parameter before the first plan.
    """
    if shards_parameters(trainer.strategy):
        return []
    named = parameters_by_name(pl_module)
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    held = [parameter for group in groups for parameter in group["params"]]
    frozen = [n for n, required in requires_grad.items() if required and not named[n].requires_grad]
    return list(parallel_unoptimized_networks(pl_module, held, frozen))


def _blocks_of(
    pl_module: LightningModule, phases: Schedule, unoptimized: Sequence[str]
) -> tuple[list[Block], list[str]]:
    """The blocks of the network that trains, and the names of the auxiliary networks.

    A network is not auxiliary if the schedule names parameters that only it has.

    Raises:
        ValueError: The module has no parameters yet.
    """
    if next(pl_module.parameters(), None) is None:
        raise ValueError(
            f"{type(pl_module).__name__} has no parameters when its training is planned. Build"
            " layers in `__init__`, `setup` or `configure_model`."
        )
    refuse_lazy(pl_module)
    own = getattr(pl_module, "blocks", None)
    network = "backbone" if isinstance(pl_module, FinetuneClassifier) else None
    containers = LightningModule | nn.ModuleDict
    auxiliary = list(
        find_auxiliary_networks(
            pl_module, network=network, is_container=lambda each: isinstance(each, containers)
        )
    )
    auxiliary += [name for name in unoptimized if name not in auxiliary]
    if not own and auxiliary:
        with without_modules(pl_module, auxiliary):
            own = list_blocks(pl_module)
        named = named_auxiliary_parameters(phases, own, list_blocks(pl_module))
        if selected := [a for a in auxiliary if any(n.startswith(f"{a}.") for n in named)]:
            auxiliary = [name for name in auxiliary if name not in selected]
            with without_modules(pl_module, auxiliary):
                own = list_blocks(pl_module)
    elif own and unoptimized:
        names = set(parameters_within(pl_module, auxiliary))
        own = [each for each in own if not each.parameters or {*each.parameters} - names]
    return with_user_frozen(pl_module, own or list_blocks(pl_module)), auxiliary

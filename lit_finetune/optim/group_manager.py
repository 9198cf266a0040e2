"""Add parameters to an optimizer's groups and remove them as the phases of a run demand."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import LBFGS, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_finetune.optim.lr_schedulers import (
    add_group,
    base_lr,
    refuse_unknown_lists,
    remove_group,
    scale_group,
    scale_swa_rates,
)
from lit_finetune.schedules.plan import GroupAddition


@dataclass(slots=True)
class _RemovedParameters:
    """Parameters that were removed from a group, and the group's options."""

    optimizer: Optimizer
    options: dict[str, Any]
    names: list[str]


class ParamGroupManager:
    """The parameter groups of a run in phases.

    At the start, `remove` takes frozen parameters out of the optimizers, whoever made them. Later,
    `add` registers them as new named groups, each a scaled copy of the optimizer's first group, its
    leader. Every step depends on names and order only: a resumed run that repeats the steps has the
    same groups in the same order, and an optimizer's saved state fits them.

    Args:
        optimizers: All optimizers of the run.
        schedulers: All their schedulers.
        parameters: The model's parameters by name.
        block_of: The name of each parameter's block.

    Raises:
        ValueError: A scheduler has per-group lists that a new group could not be added to.
    """

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        schedulers: Sequence[LRScheduler],
        parameters: Mapping[str, nn.Parameter],
        block_of: Mapping[str, str],
    ) -> None:
        self._optimizers = optimizers
        self._schedulers = schedulers
        self._parameters = parameters
        self._names = {id(parameter): name for name, parameter in parameters.items()}
        self._block_of = block_of
        self._removed: list[_RemovedParameters] = []
        for scheduler in schedulers:
            refuse_unknown_lists(scheduler, len(scheduler.optimizer.param_groups))
        for optimizer in optimizers:
            leader = base_lr(optimizer.param_groups[0])
            for group in optimizer.param_groups:
                # Most schedulers set it themselves; later `lr` no longer holds the initial rate.
                group.setdefault("initial_lr", base_lr(group))
                group.setdefault("lr_ratio", base_lr(group) / leader if leader else 1.0)

    def start(self, additions: Iterable[GroupAddition], norms: Collection[str] = ()) -> None:
        """Leave only the parameters of the first phase in the optimizers, at the requested rates.

        Args:
            additions: The additions of the first phase.
            norms: Parameters of normalisation layers that train in frozen blocks, too.
        """
        additions = list(additions)
        first = {name for addition in additions for name in addition.parameters}
        for addition in additions:
            self._add_new(addition)
        self.remove(set(self._parameters) - first)
        for addition in additions:
            if addition.lr is not None or addition.lr_scale is not None:
                self._set_rate(addition)
        extra = GroupAddition(label="norms", parameters=tuple(norms), lr=None, lr_scale=None)
        self._add_removed(extra, kind="norm")
        self._add_new(extra, kind="norm")

    def add(self, addition: GroupAddition) -> list[str]:
        """Register parameters that start to train as new groups, one for each block and kind.

        Returns:
            The names of the added parameters, without those that were in a group already.
        """
        return self._add_removed(addition) + self._add_new(addition)

    def set_schedulers(self, schedulers: Sequence[LRScheduler]) -> None:
        """Replace the schedulers: StochasticWeightAveraging puts its own in place of another."""
        for scheduler in schedulers:
            if all(scheduler is not known for known in self._schedulers):
                scale_swa_rates(scheduler)
        self._schedulers = schedulers

    def remove(self, names: Collection[str]) -> None:
        """Remove frozen parameters from the optimizers, with their optimizer state."""
        removed: list[_RemovedParameters] = []
        for optimizer in self._optimizers:
            for index in reversed(range(len(optimizer.param_groups))):
                group = optimizer.param_groups[index]
                found = [self._names.get(id(parameter), "") for parameter in group["params"]]
                removed_names = [name for name in found if name in names]
                if removed_names:
                    options = {k: v for k, v in group.items() if k not in ("params", "param_names")}
                    removed.append(_RemovedParameters(optimizer, options, removed_names))
                    self._filter_group(optimizer, index, [name not in names for name in found])
        self._removed += reversed(removed)

    def _filter_group(self, optimizer: Optimizer, index: int, is_kept: list[bool]) -> None:
        """Keep some of a group's parameters; remove a group without any, unless it is the last."""
        group = optimizer.param_groups[index]
        for parameter, kept in zip(group["params"], is_kept, strict=True):
            if not kept:
                optimizer.state.pop(parameter, None)
        if not any(is_kept) and len(optimizer.param_groups) > 1:
            remove_group(optimizer, self._schedulers_of(optimizer), index)
            return
        for key in ("params", "param_names"):
            if key in group:
                group[key] = [item for item, kept in zip(group[key], is_kept, strict=True) if kept]
        if isinstance(optimizer, LBFGS):  # it keeps the list and its length
            optimizer._params, optimizer._numel_cache = group["params"], None

    def _set_rate(self, addition: GroupAddition) -> None:
        """Set the rate of parameters that train from the start."""
        chosen = set(addition.parameters)
        split_names: set[str] = set()
        for optimizer in self._optimizers:
            leader = optimizer.param_groups[0]
            ratio = (_requested_scale(addition, leader) or 1.0) * leader["lr_ratio"]
            for index, group in enumerate(optimizer.param_groups):
                names = {self._names.get(id(parameter), "") for parameter in group["params"]}
                if names and names <= chosen:
                    factor = _ratio(ratio, group["lr_ratio"])
                    scale_group(optimizer, self._schedulers_of(optimizer), index, factor)
                    group["lr_ratio"] *= factor
                else:
                    split_names |= names & chosen
        self.remove(split_names)
        self._add_removed(addition)

    def _add_removed(self, addition: GroupAddition, kind: str | None = None) -> list[str]:
        chosen = set(addition.parameters)
        added: list[str] = []
        for removed in self._removed:
            joining = [name for name in removed.names if name in chosen]
            removed.names = [name for name in removed.names if name not in chosen]
            for block, names in self._group_by_block(joining):
                name = (
                    f"{block}/{kind}" if kind else _group_name(removed.options.get("name"), block)
                )
                self._add_group(
                    removed.optimizer, {**removed.options, "name": name}, names, addition
                )
            added += joining
        return added

    def _add_new(self, addition: GroupAddition, kind: str | None = None) -> list[str]:
        """Add parameters that no optimizer has held to the first one, with the leader's options."""
        optimizer = self._optimizers[0]
        known = {id(p) for o in self._optimizers for g in o.param_groups for p in g["params"]}
        new = [name for name in addition.parameters if id(self._parameters[name]) not in known]
        leader = optimizer.param_groups[0]
        for block, joining in self._group_by_block(new):
            name = f"{block}/{kind}" if kind else block
            options = {"name": name, "lr_ratio": leader["lr_ratio"]}
            self._add_group(optimizer, options, joining, addition)
        return new

    def _add_group(
        self,
        optimizer: Optimizer,
        options: dict[str, Any],
        names: list[str],
        addition: GroupAddition,
    ) -> None:
        if isinstance(optimizer, LBFGS):
            raise ValueError(
                f"LBFGS supports one parameter group only, so {names[0]!r} cannot join it at a rate"
                " of its own. Give the optimizer all parameters of the first phase, or use another"
                " one, such as AdamW."
            )
        leader = optimizer.param_groups[0]
        scale = _requested_scale(addition, leader)
        if scale is None:
            scale = _ratio(options["lr_ratio"], leader["lr_ratio"])
        parameters: list[Any] = [self._parameters[name] for name in names]
        group = {
            **options,
            "params": list(zip(names, parameters, strict=True))
            if "param_names" in leader
            else parameters,
            "name": _unique_name(options["name"], (g.get("name") for g in optimizer.param_groups)),
            "lr_ratio": leader["lr_ratio"] * scale,
        }
        add_group(optimizer, self._schedulers_of(optimizer), group, scale=scale)

    def _schedulers_of(self, optimizer: Optimizer) -> list[LRScheduler]:
        return [s for s in self._schedulers if s.optimizer is optimizer]

    def _group_by_block(self, names: Iterable[str]) -> list[tuple[str, list[str]]]:
        blocks: dict[str, list[str]] = {}
        for name in names:
            blocks.setdefault(self._block_of[name], []).append(name)
        return list(blocks.items())


def _requested_scale(addition: GroupAddition, leader: Mapping[str, Any]) -> float | None:
    """The rate that an addition requests, as a multiple of the leader's; None if it has none."""
    if addition.lr is not None:
        return _ratio(addition.lr, base_lr(leader))
    return addition.lr_scale


def _ratio(rate: float, of: float) -> float:
    if of == 0:
        raise ValueError(
            "A parameter group of the optimizer has the learning rate 0, and the rate of another"
            " one is a multiple of it. Give it a rate; to freeze its parameters, use the schedule."
        )
    return rate / of


def _group_name(group: str | None, block: str) -> str:
    """The name of a block's part of a group.

    >>> [_group_name(group, "layer4") for group in ("layer4/decay", "slow", None)]
    ['layer4/decay', 'layer4/slow', 'layer4']
    """
    if not group or group == block or group.startswith(f"{block}/"):
        return group or block
    return f"{block}/{group}"


def _unique_name(name: str, used: Iterable[str | None]) -> str:
    """The name, with a number behind it if it is used: a block's parts may be added separately.

    >>> _unique_name("layer4", ["head", "layer4", "layer4#2"])
    'layer4#3'
    """
    used = set(used)
    if name not in used:
        return name
    number = 2
    while f"{name}#{number}" in used:
        number += 1
    return f"{name}#{number}"

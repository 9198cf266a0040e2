"""Keep an optimizer's groups in step with what trains: the frozen parameters wait outside."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import LBFGS, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_finetune.optim.lr_schedulers import (
    add_group,
    base_lr,
    keep_proportion,
    refuse_unknown,
    remove_group,
    scale_group,
)
from lit_finetune.schedules.plan import GroupAddition


@dataclass(slots=True)
class _Waiting:
    """Parameters that were taken out of a group, and what the group would give them."""

    optimizer: Optimizer
    options: dict[str, Any]
    names: list[str]


class ParamGroupManager:
    """The parameter groups of a run in phases.

    At the start, `remove` takes what is frozen out of the optimizers, whoever made them. Later,
    `admit` registers it as new named groups, each a scaled copy of the optimizer's first group,
    which leads. Every step depends on names and order alone: a resumed run that repeats the steps
    has the same groups in the same order, and an optimizer's saved state fits them.

    Args:
        optimizers: All optimizers of the run.
        schedulers: All their schedulers.
        parameters: The model's parameters by name.
        block_of: The name of the block of each parameter.

    Raises:
        ValueError: A scheduler could not follow a new group.
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
        self._waiting: list[_Waiting] = []
        for scheduler in schedulers:
            refuse_unknown(scheduler, len(scheduler.optimizer.param_groups))
        for optimizer in optimizers:
            leader = base_lr(optimizer.param_groups[0])
            for group in optimizer.param_groups:
                # Most schedulers note it themselves; later `lr` alone no longer tells.
                group.setdefault("initial_lr", base_lr(group))
                group.setdefault("lr_ratio", base_lr(group) / leader if leader else 1.0)

    def start(self, admissions: Iterable[GroupAddition], norms: Collection[str] = ()) -> None:
        """Leave in the optimizers what the first phase trains, at the rates that it asks for.

        Args:
            admissions: Those of the first phase.
            norms: Parameters of normalisation layers that train in frozen blocks, too.
        """
        admissions = list(admissions)
        first = {name for admission in admissions for name in admission.parameters}
        for admission in admissions:
            self._add_unknown(admission)
        self.remove(set(self._parameters) - first)
        for admission in admissions:
            if admission.lr is not None or admission.lr_scale is not None:
                self._set_rate(admission)
        extra = GroupAddition(label="norms", parameters=tuple(norms), lr=None, lr_scale=None)
        self._admit(extra, kind="norm")
        self._add_unknown(extra, kind="norm")

    def admit(self, admission: GroupAddition) -> list[str]:
        """Register parameters that start to train as new groups, one for each block and kind.

        Returns:
            The names of those that have joined, without such as were in a group before.
        """
        return self._admit(admission) + self._add_unknown(admission)

    def follow(self, schedulers: Sequence[LRScheduler]) -> None:
        """Work with these from now on: StochasticWeightAveraging puts one in place of another."""
        for scheduler in schedulers:
            if all(scheduler is not known for known in self._schedulers):
                keep_proportion(scheduler)
        self._schedulers = schedulers

    def remove(self, names: Collection[str]) -> None:
        """Take frozen parameters out of the optimizers; what these know of them is dropped."""
        taken: list[_Waiting] = []
        for optimizer in self._optimizers:
            for index in reversed(range(len(optimizer.param_groups))):
                group = optimizer.param_groups[index]
                found = [self._names.get(id(parameter), "") for parameter in group["params"]]
                leaving = [name for name in found if name in names]
                if leaving:
                    options = {k: v for k, v in group.items() if k not in ("params", "param_names")}
                    taken.append(_Waiting(optimizer, options, leaving))
                    self._keep(optimizer, index, [name not in names for name in found])
        self._waiting += reversed(taken)

    def _keep(self, optimizer: Optimizer, index: int, keeps: list[bool]) -> None:
        """Keep some of a group's parameters; a group without any goes, unless it is the last."""
        group = optimizer.param_groups[index]
        for parameter, keep in zip(group["params"], keeps, strict=True):
            if not keep:
                optimizer.state.pop(parameter, None)
        if not any(keeps) and len(optimizer.param_groups) > 1:
            remove_group(optimizer, self._of(optimizer), index)
            return
        for key in ("params", "param_names"):
            if key in group:
                group[key] = [item for item, keep in zip(group[key], keeps, strict=True) if keep]
        if isinstance(optimizer, LBFGS):  # it holds the list itself, and its length
            optimizer._params, optimizer._numel_cache = group["params"], None

    def _set_rate(self, admission: GroupAddition) -> None:
        """Give parameters that train from the start a rate of their own."""
        chosen = set(admission.parameters)
        partly: set[str] = set()
        for optimizer in self._optimizers:
            leader = optimizer.param_groups[0]
            ratio = (_asked_scale(admission, leader) or 1.0) * leader["lr_ratio"]
            for index, group in enumerate(optimizer.param_groups):
                names = {self._names.get(id(parameter), "") for parameter in group["params"]}
                if names and names <= chosen:
                    factor = _proportion(ratio, group["lr_ratio"])
                    scale_group(optimizer, self._of(optimizer), index, factor)
                    group["lr_ratio"] *= factor
                else:
                    partly |= names & chosen
        self.remove(partly)
        self._admit(admission)

    def _admit(self, admission: GroupAddition, kind: str | None = None) -> list[str]:
        chosen = set(admission.parameters)
        admitted: list[str] = []
        for waiting in self._waiting:
            coming = [name for name in waiting.names if name in chosen]
            waiting.names = [name for name in waiting.names if name not in chosen]
            for block, names in self._by_block(coming):
                name = f"{block}/{kind}" if kind else _named(waiting.options.get("name"), block)
                self._add(waiting.optimizer, {**waiting.options, "name": name}, names, admission)
            admitted += coming
        return admitted

    def _add_unknown(self, admission: GroupAddition, kind: str | None = None) -> list[str]:
        """Parameters that no optimizer ever had join the first, with the leader's options."""
        optimizer = self._optimizers[0]
        known = {id(p) for o in self._optimizers for g in o.param_groups for p in g["params"]}
        new = [name for name in admission.parameters if id(self._parameters[name]) not in known]
        leader = optimizer.param_groups[0]
        for block, coming in self._by_block(new):
            name = f"{block}/{kind}" if kind else block
            options = {"name": name, "lr_ratio": leader["lr_ratio"]}
            self._add(optimizer, options, coming, admission)
        return new

    def _add(
        self,
        optimizer: Optimizer,
        options: dict[str, Any],
        names: list[str],
        admission: GroupAddition,
    ) -> None:
        if isinstance(optimizer, LBFGS):
            raise ValueError(
                f"LBFGS has one group of parameters for good, which {names[0]!r} cannot join at a"
                " rate of its own. Give the optimizer all that trains from the start, or use"
                " another one, such as AdamW."
            )
        leader = optimizer.param_groups[0]
        scale = _asked_scale(admission, leader)
        if scale is None:
            scale = _proportion(options["lr_ratio"], leader["lr_ratio"])
        parameters: list[Any] = [self._parameters[name] for name in names]
        group = {
            **options,
            "params": list(zip(names, parameters, strict=True))
            if "param_names" in leader
            else parameters,
            "name": _unique(options["name"], (g.get("name") for g in optimizer.param_groups)),
            "lr_ratio": leader["lr_ratio"] * scale,
        }
        add_group(optimizer, self._of(optimizer), group, scale=scale)

    def _of(self, optimizer: Optimizer) -> list[LRScheduler]:
        return [s for s in self._schedulers if s.optimizer is optimizer]

    def _by_block(self, names: Iterable[str]) -> list[tuple[str, list[str]]]:
        blocks: dict[str, list[str]] = {}
        for name in names:
            blocks.setdefault(self._block_of[name], []).append(name)
        return list(blocks.items())


def _asked_scale(admission: GroupAddition, leader: Mapping[str, Any]) -> float | None:
    """The rate that an admission asks for as a multiple of the leader's; None if for none."""
    if admission.lr is not None:
        return _proportion(admission.lr, base_lr(leader))
    return admission.lr_scale


def _proportion(rate: float, of: float) -> float:
    if of == 0:
        raise ValueError(
            "A parameter group of the optimizer has the learning rate 0, and another one should be"
            " in proportion to it. Give it a rate; to freeze its parameters, use the schedule."
        )
    return rate / of


def _named(group: str | None, block: str) -> str:
    """The name of a block's part of a group.

    >>> _named("layer4/decay", "layer4"), _named("slow", "layer4"), _named(None, "layer4")
    ('layer4/decay', 'layer4/slow', 'layer4')
    """
    if not group or group == block or group.startswith(f"{block}/"):
        return group or block
    return f"{block}/{group}"


def _unique(name: str, taken: Iterable[str | None]) -> str:
    """The name, or with a number behind it where it is taken: two parts of a block may come apart.

    >>> _unique("layer4", ["head", "layer4", "layer4#2"])
    'layer4#3'
    """
    taken = set(taken)
    if name not in taken:
        return name
    number = 2
    while f"{name}#{number}" in taken:
        number += 1
    return f"{name}#{number}"

"""Add a group to a running optimizer and its schedulers, or remove one.

Every torch scheduler keeps lists with an entry for each parameter group, and zips them with the
optimizer's groups. A group that is added later needs an entry in these lists, too: it is a scaled
copy of the leading group in every entry that is a rate, and from then on the scheduler changes both
in proportion.

Lower bounds have their own rule. `min_lr` of ReduceLROnPlateau has a value for each group and is
scaled like a rate, so the proportion holds. `eta_min` of the cosine schedulers is one number for
all groups and stays so, as in torch: the new group gets the rate that it would have had if present
from the start, the same fraction of the way from its base rate to the common bound as the leader.
`eps` of ReduceLROnPlateau is also one number: the scheduler skips changes smaller than it.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adagrad, Optimizer
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    LRScheduler,
    SequentialLR,
)
from torch.optim.swa_utils import SWALR

_RATE_LISTS = ("base_lrs", "_last_lr", "min_lrs", "max_lrs")
_OTHER_LISTS = ("lr_lambdas", "base_momentums", "max_momentums")
_RATE_KEYS = ("lr", "initial_lr", "max_lr", "min_lr", "swa_lr")
_CYCLED_KEYS = ("momentum", "betas", "base_momentum", "max_momentum")


def add_group(
    optimizer: Optimizer,
    schedulers: Sequence[LRScheduler],
    group: dict[str, Any],
    *,
    scale: float,
    leader: int = 0,
) -> None:
    """Add a new group to the optimizer and its schedulers, as a scaled copy of the leader.

    Args:
        optimizer: It has the leader already, and keeps its state.
        schedulers: The schedulers of this optimizer.
        group: `params` and `name`, and any option in which the group differs from the leader.
            Rates in it are ignored, and the momentum if a scheduler changes it: the leader's are
            used.
        scale: The group's rates as a multiple of the leader's.
        leader: The index of the leading group.
    """
    leader_group = optimizer.param_groups[leader]
    scheduled_keys = (*_RATE_KEYS, *(_CYCLED_KEYS if "max_momentum" in leader_group else ()))
    options = {key: value for key, value in group.items() if key not in scheduled_keys}
    rates = _scaled_rates(optimizer, schedulers, leader, scale)
    defaults = {k: v for k, v in leader_group.items() if k not in ("params", "param_names", "name")}
    optimizer.add_param_group({**defaults, **options, **rates})
    if isinstance(optimizer, Adagrad):
        _init_adagrad_state(optimizer, optimizer.param_groups[-1])
    for scheduler in _all_schedulers(schedulers):
        _edit_lists(scheduler, _RATE_LISTS, lambda old: [*old, _scaled(old[leader], scale)])
        _edit_lists(scheduler, _OTHER_LISTS, lambda old: [*old, old[leader]])


def _init_adagrad_state(optimizer: Adagrad, group: Mapping[str, Any]) -> None:
    """Create the state of a group's parameters: some Adagrad releases do so in `__init__` only."""
    for parameter in group["params"]:
        device = parameter.device if group.get("fused") else None
        optimizer.state[parameter] = {
            "step": torch.tensor(0.0, device=device),
            "sum": torch.full_like(parameter, group["initial_accumulator_value"]).detach(),
        }


def remove_group(optimizer: Optimizer, schedulers: Sequence[LRScheduler], index: int) -> None:
    """Remove a group from the optimizer and its schedulers, with its parameters' state."""
    for parameter in optimizer.param_groups.pop(index)["params"]:
        optimizer.state.pop(parameter, None)
    for scheduler in _all_schedulers(schedulers):
        lists = (*_RATE_LISTS, *_OTHER_LISTS)
        _edit_lists(scheduler, lists, lambda old: [*old[:index], *old[index + 1 :]])


def scale_group(
    optimizer: Optimizer, schedulers: Sequence[LRScheduler], index: int, factor: float
) -> None:
    """Multiply every rate of a group, in the optimizer and in its schedulers, by a factor."""
    rates = _scaled_rates(optimizer, schedulers, index, factor)
    optimizer.param_groups[index].update(rates)
    for scheduler in _all_schedulers(schedulers):
        _edit_lists(
            scheduler,
            _RATE_LISTS,
            lambda old: [*old[:index], _scaled(old[index], factor), *old[index + 1 :]],
        )


def scale_swa_rates(scheduler: Any) -> None:
    """Scale the one rate that a new SWALR has for all groups by each group's `lr_ratio`.

    Lightning's StochasticWeightAveraging adds one during training, and again when resuming. Rates
    that differ between groups were chosen by the user, and stay.

    Args:
        scheduler: It has not changed a rate yet. Schedulers other than SWALR are not changed. Its
            groups have an `lr_ratio`.
    """
    if not isinstance(scheduler, SWALR):
        return
    leader, *others = scheduler.optimizer.param_groups
    if all(group["swa_lr"] == leader["swa_lr"] for group in others):
        # Without annealing, SWALR has set the rate to `swa_lr` already.
        keys = ("swa_lr", "initial_lr", *([] if scheduler.anneal_epochs else ["lr"]))
        for group in others:
            ratio = group["lr_ratio"] / leader["lr_ratio"]
            group.update({key: leader[key] * ratio for key in keys})
    # The state of a resumed one lacks the groups that were added just before it was made.
    added_groups = scheduler.optimizer.param_groups[len(scheduler.base_lrs) :]
    scheduler.base_lrs = [*scheduler.base_lrs, *(group["initial_lr"] for group in added_groups)]


def base_lr(group: Mapping[str, Any]) -> float:
    """The rate that a group was given: its scheduler's initial rate, or OneCycleLR's peak."""
    return float(group.get("max_lr", group.get("initial_lr", group["lr"])))


def refuse_unknown_lists(scheduler: Any, num_groups: int) -> None:
    """Refuse a user's scheduler whose per-group lists would not be extended for a new group.

    That is a list of rates or functions as long as the groups. Lists of integers, such as
    milestones, are accepted.

    Args:
        scheduler: Any scheduler; the lists of torch's own are all known.
        num_groups: The number of groups that its optimizer had when the scheduler was made.

    Raises:
        ValueError: Names the class and its lists.
    """
    known = (*_RATE_LISTS, *_OTHER_LISTS)
    for each in _all_schedulers([scheduler]):
        options = {} if type(each).__module__.startswith("torch.optim.") else vars(each)
        lists = [
            f"`{name}`"
            for name, value in options.items()
            if name not in known and isinstance(value, list) and len(value) == num_groups
            if any(isinstance(item, float | Tensor) or callable(item) for item in value)
        ]
        if lists:
            raise ValueError(
                f"The scheduler {type(each).__name__} keeps {', '.join(lists)} with an entry for"
                f" each of the {num_groups} parameter groups. A group that starts to train later"
                " would have none. Take the values from the groups or from `base_lrs`; if the"
                " list does not belong to the groups, make it a tuple."
            )


def _scaled_rates(
    optimizer: Optimizer, schedulers: Sequence[LRScheduler], index: int, scale: float
) -> dict[str, Any]:
    """All rates of a group, scaled; `lr` with regard to `eta_min`, if the scheduler has one."""
    group = optimizer.param_groups[index]
    rates = {key: _scaled(group[key], scale) for key in _RATE_KEYS if key in group}
    for scheduler in _active_schedulers(schedulers):
        if isinstance(scheduler, CosineAnnealingLR | CosineAnnealingWarmRestarts):
            floor, base = scheduler.eta_min, scheduler.base_lrs[index]
            if floor:
                progress = (group["lr"] - floor) / (base - floor) if base != floor else 0.0
                rates["lr"] = floor + progress * (scale * base - floor)
    return rates


def _scaled(rate: Any, scale: float) -> Any:
    """A scaled rate: torch accepts numbers, tensors, and in some lists None."""
    return None if rate is None else rate * scale


def _active_schedulers(schedulers: Iterable[Any]) -> Iterator[Any]:
    """The schedulers that change the rates now: of a SequentialLR only the current one."""
    for scheduler in schedulers:
        if isinstance(scheduler, SequentialLR):
            index = bisect_right(scheduler._milestones, scheduler.last_epoch)
            yield from _active_schedulers([scheduler._schedulers[index]])
        elif isinstance(scheduler, ChainedScheduler):
            yield from _active_schedulers(scheduler._schedulers)
        else:
            yield scheduler


def _all_schedulers(schedulers: Iterable[Any]) -> list[Any]:
    """The schedulers and all schedulers that they contain, each once."""
    all_schedulers: list[Any] = []
    pending = list(schedulers)
    while pending:
        scheduler = pending.pop(0)
        if not any(scheduler is other for other in all_schedulers):
            all_schedulers.append(scheduler)
            for value in vars(scheduler).values():
                values = value if isinstance(value, list | tuple) else [value]
                pending += [item for item in values if isinstance(item, LRScheduler)]
    return all_schedulers


def _edit_lists(
    scheduler: Any, names: Iterable[str], edit: Callable[[list[Any]], list[Any]]
) -> None:
    """Replace each list that the scheduler has by an edited copy.

    A copy, since nested schedulers may share a list with the outer one.
    """
    for name in names:
        if isinstance(old := getattr(scheduler, name, None), list):
            setattr(scheduler, name, edit(old))

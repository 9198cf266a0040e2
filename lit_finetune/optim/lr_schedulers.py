"""Give a running optimizer and its schedulers one group more, or one less.

Every torch scheduler keeps lists with an entry for each parameter group, and walks them beside
the optimizer's groups. A group that joins later has to join these lists as well: it is born as a
scaled copy of the group that leads, in every entry that is a rate, and from then on the scheduler
moves both in proportion.

A floor has its own rule. One that a scheduler keeps for each group, `min_lr` of ReduceLROnPlateau,
is scaled like a rate, and the proportion holds. `eta_min` of the cosine schedulers is one number
for all groups and stays that, as in torch: the new group stands where it would stand had it been
there from the start, as far on its way from its own base rate to the common floor as the leader.
`eps` of ReduceLROnPlateau is such a number, too: it takes no step on a rate that is smaller.
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
    """Let a new group join the optimizer and its schedulers as a scaled copy of the leader.

    Args:
        optimizer: It has the leader already, and goes on with its state.
        schedulers: Those of this optimizer.
        group: `params` and `name`, and any option in which the group differs from the leader.
            Rates in it are ignored, and the momentum where a scheduler moves it: the leader's
            count.
        scale: The group's rates as a multiple of the leader's.
        leader: The index of the leading group.
    """
    leading = optimizer.param_groups[leader]
    led = (*_RATE_KEYS, *(_CYCLED_KEYS if "max_momentum" in leading else ()))
    own = {key: value for key, value in group.items() if key not in led}
    rates = _scaled_rates(optimizer, schedulers, leader, scale)
    shared = {k: v for k, v in leading.items() if k not in ("params", "param_names", "name")}
    optimizer.add_param_group({**shared, **own, **rates})
    if isinstance(optimizer, Adagrad):
        _begin_sums(optimizer, optimizer.param_groups[-1])
    for scheduler in _nested(schedulers):
        _edit_lists(scheduler, _RATE_LISTS, lambda old: [*old, _scaled(old[leader], scale)])
        _edit_lists(scheduler, _OTHER_LISTS, lambda old: [*old, old[leader]])


def _begin_sums(optimizer: Adagrad, group: Mapping[str, Any]) -> None:
    """Give a group's parameters the state that some releases' Adagrad makes at its birth alone."""
    for parameter in group["params"]:
        device = parameter.device if group.get("fused") else None
        optimizer.state[parameter] = {
            "step": torch.tensor(0.0, device=device),
            "sum": torch.full_like(parameter, group["initial_accumulator_value"]).detach(),
        }


def remove_group(optimizer: Optimizer, schedulers: Sequence[LRScheduler], index: int) -> None:
    """Let a group leave the optimizer and its schedulers. Its parameters keep no state behind."""
    for parameter in optimizer.param_groups.pop(index)["params"]:
        optimizer.state.pop(parameter, None)
    for scheduler in _nested(schedulers):
        lists = (*_RATE_LISTS, *_OTHER_LISTS)
        _edit_lists(scheduler, lists, lambda old: [*old[:index], *old[index + 1 :]])


def scale_group(
    optimizer: Optimizer, schedulers: Sequence[LRScheduler], index: int, factor: float
) -> None:
    """Multiply every rate of a group, in the optimizer and in its schedulers, by a factor."""
    rates = _scaled_rates(optimizer, schedulers, index, factor)
    optimizer.param_groups[index].update(rates)
    for scheduler in _nested(schedulers):
        _edit_lists(
            scheduler,
            _RATE_LISTS,
            lambda old: [*old[:index], _scaled(old[index], factor), *old[index + 1 :]],
        )


def keep_proportion(scheduler: Any) -> None:
    """Give each group its share of the one rate that a new SWALR has for all of them.

    Lightning's StochasticWeightAveraging brings one into a running training, and again into one
    that is resumed. Rates that differ were chosen group by group, and stay.

    Args:
        scheduler: It has moved no rate yet; others than SWALR are left alone. Its groups bear
            their `lr_ratio`.
    """
    if not isinstance(scheduler, SWALR):
        return
    leader, *others = scheduler.optimizer.param_groups
    if all(group["swa_lr"] == leader["swa_lr"] for group in others):
        # Without annealing the rate has gone there at once.
        keys = ("swa_lr", "initial_lr", *([] if scheduler.anneal_epochs else ["lr"]))
        for group in others:
            share = group["lr_ratio"] / leader["lr_ratio"]
            group.update({key: leader[key] * share for key in keys})
    # The state of a resumed one knows no groups that have joined just before it was made.
    late = scheduler.optimizer.param_groups[len(scheduler.base_lrs) :]
    scheduler.base_lrs = [*scheduler.base_lrs, *(group["initial_lr"] for group in late)]


def base_lr(group: Mapping[str, Any]) -> float:
    """The rate that a group was given: what its scheduler starts from, or OneCycleLR's peak."""
    return float(group.get("max_lr", group.get("initial_lr", group["lr"])))


def refuse_unknown(scheduler: Any, num_groups: int) -> None:
    """Refuse a scheduler of the user's own that could not follow when a group joins.

    Such a one keeps a list of rates or functions beside the groups, which nobody would extend.
    Lists of whole numbers, such as milestones, are taken for what they are.

    Args:
        scheduler: Any; torch's own are all known.
        num_groups: How many groups its optimizer had when the scheduler was made.

    Raises:
        ValueError: Names the class and its lists.
    """
    known = (*_RATE_LISTS, *_OTHER_LISTS)
    for each in _nested([scheduler]):
        own = {} if type(each).__module__.startswith("torch.optim.") else vars(each)
        lists = [
            f"`{name}`"
            for name, value in own.items()
            if name not in known and isinstance(value, list) and len(value) == num_groups
            if any(isinstance(item, float | Tensor) or callable(item) for item in value)
        ]
        if lists:
            raise ValueError(
                f"The scheduler {type(each).__name__} keeps {', '.join(lists)} with an entry for"
                f" each of the {num_groups} parameter groups. A group that starts to train later"
                " would have none. Take the values from the groups or from `base_lrs`; if this"
                " has nothing to do with the groups, hold it as a tuple."
            )


def _scaled_rates(
    optimizer: Optimizer, schedulers: Sequence[LRScheduler], index: int, scale: float
) -> dict[str, Any]:
    """All rates of a group, scaled; the one in use with regard to a floor, if there is one."""
    group = optimizer.param_groups[index]
    rates = {key: _scaled(group[key], scale) for key in _RATE_KEYS if key in group}
    for scheduler in _at_work(schedulers):
        if isinstance(scheduler, CosineAnnealingLR | CosineAnnealingWarmRestarts):
            floor, base = scheduler.eta_min, scheduler.base_lrs[index]
            if floor:
                height = (group["lr"] - floor) / (base - floor) if base != floor else 0.0
                rates["lr"] = floor + height * (scale * base - floor)
    return rates


def _scaled(rate: Any, scale: float) -> Any:
    """A rate, which torch also takes as a tensor, or None where a scheduler has none."""
    return None if rate is None else rate * scale


def _at_work(schedulers: Iterable[Any]) -> Iterator[Any]:
    """The schedulers that move the rates now: of a SequentialLR the one whose turn it is."""
    for scheduler in schedulers:
        if isinstance(scheduler, SequentialLR):
            turn = bisect_right(scheduler._milestones, scheduler.last_epoch)
            yield from _at_work([scheduler._schedulers[turn]])
        elif isinstance(scheduler, ChainedScheduler):
            yield from _at_work(scheduler._schedulers)
        else:
            yield scheduler


def _nested(schedulers: Iterable[Any]) -> list[Any]:
    """The schedulers and all those that they hold, each once."""
    found: list[Any] = []
    waiting = list(schedulers)
    while waiting:
        scheduler = waiting.pop(0)
        if not any(scheduler is other for other in found):
            found.append(scheduler)
            for value in vars(scheduler).values():
                held = value if isinstance(value, list | tuple) else [value]
                waiting += [item for item in held if isinstance(item, LRScheduler)]
    return found


def _edit_lists(
    scheduler: Any, names: Iterable[str], edit: Callable[[list[Any]], list[Any]]
) -> None:
    """Put an edited copy in the place of each list that the scheduler has.

    A copy, since nested schedulers may share a list with the one around them.
    """
    for name in names:
        if isinstance(old := getattr(scheduler, name, None), list):
            setattr(scheduler, name, edit(old))

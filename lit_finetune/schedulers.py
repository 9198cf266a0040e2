"""Give a running optimizer and its schedulers one group more, or one less.

Every torch scheduler keeps lists with an entry for each parameter group, and walks them beside
the optimizer's groups. A group that joins later has to join these lists as well: it is born as a
scaled copy of the group that leads, in every entry that is a rate, and from then on the scheduler
moves both in proportion.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

_RATE_LISTS = ("base_lrs", "_last_lr", "min_lrs", "max_lrs")
_OTHER_LISTS = ("lr_lambdas", "base_momentums", "max_momentums")
_RATE_KEYS = ("lr", "initial_lr", "max_lr", "min_lr", "swa_lr")


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
            Rates in it are ignored: the leader's count.
        scale: The group's rates as a multiple of the leader's.
        leader: The index of the leading group.
    """
    leading = optimizer.param_groups[leader]
    own = {key: value for key, value in group.items() if key not in _RATE_KEYS}
    rates = {key: _scaled(leading[key], scale) for key in _RATE_KEYS if key in leading}
    shared = {k: v for k, v in leading.items() if k not in ("params", "param_names", "name")}
    optimizer.add_param_group({**shared, **own, **rates})
    for scheduler in _nested(schedulers):
        _edit_lists(scheduler, _RATE_LISTS, lambda old: [*old, _scaled(old[leader], scale)])
        _edit_lists(scheduler, _OTHER_LISTS, lambda old: [*old, old[leader]])


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
    group = optimizer.param_groups[index]
    group.update({key: _scaled(group[key], factor) for key in _RATE_KEYS if key in group})
    for scheduler in _nested(schedulers):
        _edit_lists(
            scheduler,
            _RATE_LISTS,
            lambda old: [*old[:index], _scaled(old[index], factor), *old[index + 1 :]],
        )


def base_lr(group: dict[str, Any]) -> float:
    """The rate that a scheduler started from, or the rate itself where there is no scheduler."""
    return float(group.get("initial_lr", group["lr"]))


def _scaled(rate: Any, scale: float) -> Any:
    """A rate, which torch also takes as a tensor, or None where a scheduler has none."""
    return None if rate is None else rate * scale


def _nested(schedulers: Iterable[Any]) -> Iterator[Any]:
    """The schedulers, and those inside `SequentialLR` and `ChainedScheduler`."""
    for scheduler in schedulers:
        yield scheduler
        yield from _nested(getattr(scheduler, "_schedulers", ()))


def _edit_lists(
    scheduler: Any, names: Iterable[str], edit: Callable[[list[Any]], list[Any]]
) -> None:
    """Put an edited copy in the place of each list that the scheduler has.

    A copy, since nested schedulers may share a list with the one around them.
    """
    for name in names:
        if isinstance(old := getattr(scheduler, name, None), list):
            setattr(scheduler, name, edit(old))

"""Compare the optimizers and schedulers of a resumed run with those of its checkpoint.

Their states contain their options: torch replaces those of this run by them, and says nothing.
"""

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

_OPTIONS = ("lr", "weight_decay", "momentum", "betas")
_NEW_RUN = "To train with other ones, start a new run from its weights alone, passed as `weights`."


def settings_of(optimizers: Iterable[Optimizer], schedulers: Iterable[Any]) -> dict[str, Any]:
    """The classes and options of optimizers and schedulers, as plain data.

    Args:
        optimizers: The run's optimizers, before the first step.
        schedulers: The run's schedulers.
    """
    return {
        "optimizers": [
            {"class": type(each).__name__, "groups": list(map(_group_options, each.param_groups))}
            for each in optimizers
        ],
        "schedulers": [
            {"class": type(each).__name__, "options": _scheduler_options(each)}
            for each in schedulers
        ],
    }


def refuse_other_classes(saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Refuse optimizers or schedulers of other classes than those of the checkpoint's run.

    Args:
        saved: The settings of the checkpoint's run, from `settings_of`.
        current: The settings of this run.

    Raises:
        ValueError: Names the classes of both.
    """
    for kind in ("optimizers", "schedulers"):
        before, now = ([each["class"] for each in every[kind]] for every in (saved, current))
        if before != now:
            raise ValueError(
                f"The checkpoint's run has {_names(before, kind)}, and this one has"
                f" {_names(now, kind)}: a run cannot be resumed with another. {_NEW_RUN}"
            )


def changed_options(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """The options that differ, each with its value in the checkpoint's run and in this one.

    Groups are compared by name; those without names, if there are as many in both.

    >>> def adam(lr):
    ...     return {"class": "Adam", "groups": [{"lr": lr, "weight_decay": 0.0}]}
    >>> saved = {"optimizers": [adam(0.1)], "schedulers": []}
    >>> changed_options(saved, {"optimizers": [adam(0.2)], "schedulers": []})
    ['lr=0.1, not 0.2']

    Args:
        saved: The settings of the checkpoint's run, from `settings_of`.
        current: The settings of this run, with the same classes.
    """
    changes: dict[str, str] = {}  # of an option that differs in several groups, the first
    for before, now in zip(saved["optimizers"], current["optimizers"], strict=True):
        for pair in _common_groups(before["groups"], now["groups"]):
            changes = _differences(*pair) | changes
    for before, now in zip(saved["schedulers"], current["schedulers"], strict=True):
        of = f"{now['class']}'s "
        changes |= _differences(before["options"], now["options"], of)
    return list(changes.values())


def changed_options_line(changes: Sequence[str]) -> str:
    """The warning that the checkpoint's options are used."""
    return (
        f"The checkpoint's run had {' and '.join(changes)}: the resumed run continues with the"
        f" checkpoint's values. {_NEW_RUN}"
    )


def refuse_missing_options(optimizer: Optimizer) -> None:
    """Refuse a loaded state of another optimizer, from a checkpoint that does not name its class.

    Args:
        optimizer: The run's optimizer.

    Raises:
        ValueError: Names the options that its groups do not have.
    """
    for group in optimizer.param_groups:
        if missing := sorted(optimizer.defaults.keys() - group.keys()):
            raise ValueError(
                f"The checkpoint is of another optimizer than this run's {type(optimizer).__name__}"
                f" (its state has no {', '.join(map(repr, missing))}): a run cannot be resumed with"
                f" another. {_NEW_RUN}"
            )


def _group_options(group: Mapping[str, Any]) -> dict[str, Any]:
    values = {key: group[key] for key in _OPTIONS if key in group}
    if "initial_lr" in group:
        values["lr"] = group["initial_lr"]
    options: dict[str, Any] = {
        key: [float(each) for each in value] if isinstance(value, list | tuple) else float(value)
        for key, value in values.items()
        if isinstance(value, float | int | list | tuple | Tensor)
    }
    return options | ({"name": group["name"]} if isinstance(group.get("name"), str) else {})


def _scheduler_options(scheduler: Any) -> dict[str, Any]:
    """The arguments of a scheduler that are plain values in its state."""
    state = {key: value for key, value in vars(scheduler).items() if not key.startswith("_")}
    names = inspect.signature(type(scheduler)).parameters.keys() - {"last_epoch", "optimizer"}
    return {
        key: state[key]
        for key in sorted(names & state.keys())
        if isinstance(state[key], bool | int | float | str)
    }


def _common_groups(
    before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]
) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    if all("name" in group for group in (*before, *now)):  # a schedule adds and removes groups
        named = {group["name"]: group for group in before}
        return [(named[group["name"]], group) for group in now if group["name"] in named]
    return list(zip(before, now, strict=True)) if len(before) == len(now) else []


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], of: str = "") -> dict[str, str]:
    return {
        of + key: f"{of}{key}={before[key]}, not {now[key]}"
        for key in now
        if key in before and not _is_same(before[key], now[key])
    }


def _is_same(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-9)  # they may be products
    return bool(a == b)


def _names(classes: Sequence[str], kind: str) -> str:
    return f"the {kind[:-1]} {' and '.join(classes)}" if classes else f"no {kind[:-1]}"

"""Read a schedule that is a list of entries, each with its own start."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from math import isfinite
from typing import Any

from lit_finetune._errors import nearest, one_of
from lit_finetune.schedules.phases import (
    Phase,
    Schedule,
    Selection,
    Selector,
    parse_schedule,
    read_selections,
    read_selectors,
    whole_number,
)
from lit_finetune.schedules.triggers import Plateau

START_KEYS = ("epoch", "step", "at", "on_plateau")
"""The keys for the start of an entry."""


def read_schedule(schedule: Mapping[Any, Any] | Sequence[Any]) -> Schedule:
    """The phases of a mapping from epoch to selectors, or of a list of entries."""
    return parse_schedule(schedule) if isinstance(schedule, Mapping) else parse_entries(schedule)


def parse_entries(entries: Sequence[Any]) -> Schedule:
    """Read a schedule that is a list, in Python or in YAML.

    Args:
        entries: Mappings with at most one of `epoch`, `step`, `at` and `on_plateau`, the start of
            the entry; the first entry begins with the run. Further keys are `modules`, `lr`,
            `lr_scale`, `freeze`, `restore_best` and `warmup_steps`.

    Returns:
        The phases in the order of the list.

    Raises:
        ValueError: Names every problem of the schedule at once.

    >>> phases = parse_entries([{"modules": "head"}, {"step": 500, "modules": "layer4", "lr": 0.1}])
    >>> [(phase.start_text, phase.adds[0].modules) for phase in phases]
    [('epoch 0', ('head',)), ('step 500', ('layer4',))]
    """
    phases: list[Phase] = []
    problems: list[str] = [] if entries else ["nothing would train at all: write `- modules: head`"]
    for number, entry in enumerate(entries, start=1):
        phase, entry_problems = _read_entry(entry, is_first=number == 1)
        phases.append(phase)
        problems += [f"entry {number}: {text}" for text in entry_problems]
    problems += _not_ascending(phases)
    if problems:
        raise ValueError("The schedule cannot be read:\n  " + "\n  ".join(problems))
    return tuple(phases)


def parse_plateau(value: Any) -> Plateau:
    """Read the value of `on_plateau`.

    >>> parse_plateau({"monitor": "val/acc", "mode": "max", "patience": 3}).patience
    3

    Raises:
        ValueError: Names every problem at once.
    """
    if not isinstance(value, Mapping) or not isinstance(value.get("monitor"), str):
        raise ValueError(f"it names a metric, as {{monitor: val/loss}}, but got {value!r}")
    known = [field.name for field in fields(Plateau)]
    values, problems = _read_values(value, {key: _PLATEAU_READERS.get(key) for key in known})
    if problems:
        raise ValueError("; ".join(problems))
    return Plateau(**values)


def _read_values(
    given: Mapping[str, Any], readers: Mapping[str, Callable[[Any], Any] | None]
) -> tuple[dict[str, Any], list[str]]:
    """The values of a mapping as read by the key's reader, and the problems of the others."""
    values: dict[str, Any] = {}
    problems: list[str] = []
    for key, value in given.items():
        if key not in readers:
            hint = nearest(str(key), readers)
            problems.append(f"unknown key {key!r}.{hint} There are: {', '.join(readers)}")
            continue
        reader = readers[key]
        try:
            values[key] = reader(value) if reader else value
        except ValueError as error:
            problems.append(f"`{key}`: {error}")
    return values, problems


def _read_entry(entry: Any, *, is_first: bool) -> tuple[Phase, list[str]]:
    """The phase of an entry, without its invalid parts, and the problems."""
    if not isinstance(entry, Mapping):
        return Phase(), [f"it is a mapping, such as `{{epoch: 2, modules: layer4}}`, not {entry!r}"]
    values, problems = _read_values(entry, _READERS)
    try:
        adds = _read_additions(entry)
    except ValueError as error:
        adds = ()
        problems.append(str(error))
    phase = Phase(
        adds=adds,
        freezes=values.get("freeze", ()),
        restore_best=values.get("restore_best", False),
        warmup_steps=values.get("warmup_steps", 0),
        **{key: values[key] for key in START_KEYS if key in values},
    )
    problems += _contradictions(entry)
    if is_first:
        phase, start_problems = _first_phase(phase, entry)
        problems += start_problems
    elif not any(key in entry for key in START_KEYS):
        keys = ", ".join(f"`{key}`" for key in START_KEYS)
        problems.append(f"it does not say when it begins: give one of {keys}")
    return phase, problems


def _read_additions(entry: Mapping[str, Any]) -> tuple[Selection, ...]:
    """The selections of an entry's `modules`, with the rate that the entry gives."""
    if "modules" not in entry:
        return ()
    rates = {key: entry[key] for key in ("lr", "lr_scale") if entry.get(key) is not None}
    if not rates:
        return read_selections(entry["modules"])
    return (Selection(modules=read_selectors(entry["modules"]), **rates),)


def _contradictions(entry: Mapping[str, Any]) -> list[str]:
    """The problems of an entry's combination of keys."""
    problems: list[str] = []
    given = [f"`{key}`" for key in START_KEYS if key in entry]
    if len(given) > 1:
        problems.append(f"it begins once: keep one of {', '.join(given)}")
    if "modules" not in entry:
        problems += [
            f"`{key}` without `modules`: nothing starts to train that it could apply to"
            for key in ("lr", "lr_scale", "warmup_steps")
            if key in entry
        ]
        if "freeze" not in entry:
            problems.append("it changes nothing: give `modules` that start to train, or `freeze`")
    if entry.get("restore_best") and "on_plateau" not in entry:
        problems.append("`restore_best` needs `on_plateau`, whose metric says what is best")
    return problems


def _first_phase(phase: Phase, entry: Mapping[str, Any]) -> tuple[Phase, list[str]]:
    """The first phase, which begins with the run, and its problems."""
    if phase.on_plateau or phase.epoch or phase.step or phase.at:
        return phase, [
            f"nothing would train before it begins, {phase.start_text}: put an entry without a"
            " start first, as `- modules: head`"
        ]
    problems = [] if "freeze" not in entry else ["nothing trains yet that `freeze` could stop"]
    if "modules" not in entry and "freeze" in entry:
        problems.append("nothing would train: give `modules`")
    return replace(phase, epoch=0, step=None, at=None), problems


def _not_ascending(phases: Sequence[Phase]) -> list[str]:
    """The entries that would begin before an earlier one given in the same unit."""
    problems: list[str] = []
    for key in ("epoch", "step", "at"):
        last = None
        for number, phase in enumerate(phases, start=1):
            value = getattr(phase, key)
            if value is not None and last is not None and value <= getattr(last, key):
                problems.append(
                    f"entry {number}: {phase.start_text} does not come after {last.start_text},"
                    " which stands above it"
                )
            last = last if value is None else phase
    return problems


def _count(value: Any) -> int:
    return _integer(value, least=0)


def _positive(value: Any) -> int:
    return _integer(value, least=1)


def _integer(value: Any, *, least: int) -> int:
    number = whole_number(value)
    if number is None or number < least:
        raise ValueError(f"a whole number from {least} on is needed, but got {value!r}")
    return number


def _fraction(value: Any) -> float:
    if not _is_number(value) or not 0 <= value < 1:
        raise ValueError(f"a share of the run is needed, from 0 to below 1, but got {value!r}")
    return float(value)


def _non_negative(value: Any) -> float:
    if not _is_number(value) or value < 0:
        raise ValueError(f"a number from 0 on is needed, but got {value!r}")
    return float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"true or false is needed, but got {value!r}")
    return value


def _read_selectors(value: Any) -> tuple[Selector, ...]:
    selectors = read_selectors(value)
    if not selectors:
        raise ValueError("it selects nothing: name a block, such as 'head'")
    return selectors


_READERS: Mapping[str, Callable[[Any], Any] | None] = {
    "epoch": _count,
    "step": _count,
    "at": _fraction,
    "on_plateau": parse_plateau,
    "modules": None,  # `_read_additions` reads these three together
    "lr": None,
    "lr_scale": None,
    "freeze": _read_selectors,
    "restore_best": _bool,
    "warmup_steps": _count,
}

_PLATEAU_READERS: Mapping[str, Callable[[Any], Any]] = {
    "mode": lambda value: one_of(str(value), ("min", "max"), "mode"),
    "patience": _positive,
    "min_delta": _non_negative,
    "max_epochs": lambda value: None if value is None else _positive(value),
}

"""Schedules as plain data: phases, each with its start and its selectors.

A schedule is a tuple of phases, read from a mapping of epochs to selectors, or made by a named
strategy. It does not depend on torch or a network: `selectors` finds a selector's parameters in a
network, and `plan` checks the whole schedule.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_finetune._errors import nearest
from lit_finetune.schedules.triggers import Plateau

Selector = str | int
"""A block, a module, a glob, `re:…`, a block index or slice, `children[…]`, or `all`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Modules that start to train together, and their learning rate."""

    modules: tuple[Selector, ...]
    """The selectors of the modules."""
    lr: float | None = None
    """Their learning rate before any schedule; the scheduler moves it like the leader's."""
    lr_scale: float | None = None
    """Their learning rate as a multiple of the leader's, the optimizer's first group; for the
    leader itself, of its own."""

    def __post_init__(self) -> None:
        if not self.modules:
            raise ValueError("A schedule's entry selects nothing: name a block, such as 'head'.")
        if self.lr is not None and self.lr_scale is not None:
            raise ValueError(f"{self} gives both `lr` and `lr_scale`: keep one of them.")
        for name, rate in (("lr", self.lr), ("lr_scale", self.lr_scale)):
            if rate is not None and not (isinstance(rate, int | float) and 0 < rate < math.inf):
                raise ValueError(f"`{name}` must be a positive number, but {self} has {rate!r}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """From its start on, `adds` trains in addition, and `freezes` trains no longer.

    Exactly one of `epoch`, `step`, `at` and `on_plateau` is its start.
    """

    epoch: int | None = None
    """At the start of this epoch."""
    step: int | None = None
    """After so many steps of the optimizer; for a phase with `at`, computed from it."""
    at: float | None = None
    """After this fraction of all steps of the run."""
    on_plateau: Plateau | None = None
    """When a metric stalls in the previous phase."""
    adds: tuple[Selection, ...] = ()
    freezes: tuple[Selector, ...] = ()
    restore_best: bool = False
    """Whether the phase begins with the best weights of the previous phase."""
    warmup_steps: int = 0
    """The number of steps over which the learning rate of `adds` rises."""

    @property
    def start_text(self) -> str:
        """Its start, in words.

        >>> Phase(epoch=2).start_text, Phase(step=500).start_text, Phase(at=0.3).start_text
        ('epoch 2', 'step 500', '30%')
        >>> Phase(at=0.3, step=240).start_text, Phase(on_plateau=Plateau(monitor="loss")).start_text
        ('30% = step 240', 'when loss stalls (patience 2)')
        """
        words = [] if self.at is None else [f"{100 * self.at:.4g}%"]
        words += [] if self.step is None else [f"step {self.step}"]
        words += [] if self.epoch is None else [f"epoch {self.epoch}"]
        return str(self.on_plateau) if self.on_plateau else " = ".join(words)


Schedule = tuple[Phase, ...]


def phase_at(epochs: Sequence[float], epoch: int) -> int:
    """The index of the phase at an epoch, if phase i begins at `epochs[i]`.

    >>> [phase_at([0, 2, 5], epoch) for epoch in range(7)]
    [0, 0, 1, 1, 1, 2, 2]
    """
    return max(index for index, start in enumerate(epochs) if start <= epoch)


def parse_schedule(entries: Mapping[Any, Any]) -> Schedule:
    """Read a schedule as a user writes it, in Python or in YAML.

    Args:
        entries: From epoch to a selector, a list of selectors, or `{modules, lr, lr_scale}`; a
            list may mix selectors and such mappings.

    Returns:
        The phases in the order of their epochs.

    Raises:
        ValueError: Names every problem of the schedule at once.

    >>> parse_schedule({0: "head", 2: {"modules": "layer4", "lr_scale": 0.1}})[1].adds[0].lr_scale
    0.1
    """
    phases: list[Phase] = []
    problems: list[str] = []
    for key, value in entries.items():
        try:
            phases.append(Phase(epoch=_epoch(key), adds=read_selections(value)))
        except ValueError as error:
            problems.append(f"{key!r}: {error}")
    phases.sort(key=lambda phase: phase.epoch or 0)
    epochs = [phase.epoch or 0 for phase in phases]
    problems += [
        f"epoch {e} is given twice" for e in sorted({e for e in epochs if epochs.count(e) > 1})
    ]
    if not problems and epochs[:1] != [0]:
        first = f"before epoch {epochs[0]}" if epochs else "at all"
        problems.append(
            f"nothing would train {first}: say what trains from the start, as `0: head`"
        )
    if problems:
        raise ValueError("The schedule cannot be read:\n  " + "\n  ".join(problems))
    return tuple(phases)


def whole_number(value: Any) -> int | None:
    """A whole number from 0 on, also from text; None for other values.

    >>> [whole_number(value) for value in (2, " 2 ", 2.0, -1, 1.5, True, None)]
    [2, 2, 2, None, None, None, None]
    """
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return None if number < 0 or number != float(value) or isinstance(value, bool) else number


def _epoch(key: Any) -> int:
    epoch = whole_number(key)
    if epoch is None:
        raise ValueError("an epoch is a whole number from 0 on, such as `2: layer4`")
    return epoch


def read_selections(value: Any) -> tuple[Selection, ...]:
    """One selection of all plain selectors of an entry, and one for each mapping."""
    items = list(value) if isinstance(value, list | tuple) else [value]
    plain = read_selectors([item for item in items if not isinstance(item, Mapping)])
    mappings = [_from_mapping(item) for item in items if isinstance(item, Mapping)]
    return (*([Selection(modules=plain)] if plain or not mappings else []), *mappings)


def read_selectors(value: Any) -> tuple[Selector, ...]:
    """A selector, or a list of them, as a tuple."""
    items = tuple(value) if isinstance(value, list | tuple) else (value,)
    for item in items:
        if not isinstance(item, str | int) or isinstance(item, bool):
            raise ValueError(f"a selector is a name or a block's index, but got {item!r}")
    return items


def _from_mapping(entry: Mapping[str, Any]) -> Selection:
    known = ("modules", "lr", "lr_scale")
    for key in entry:
        if key not in known:
            hint = nearest(str(key), known)
            raise ValueError(f"unknown key {key!r}.{hint} An entry has the keys {', '.join(known)}")
    if "modules" not in entry:
        raise ValueError(f"{dict(entry)} names no `modules`")
    modules = read_selectors(entry["modules"])
    return Selection(modules=modules, lr=entry.get("lr"), lr_scale=entry.get("lr_scale"))

"""When a phase begins: where a run stands, and whether a metric has stalled.

Pure functions and plain numbers: what a run must remember to go on as if it had never stopped is a
`Progress`, which a checkpoint holds.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, NamedTuple

from lit_finetune._errors import nearest


class Position(NamedTuple):
    """The epoch that trains, and how many steps the optimizer has made in the whole run."""

    epoch: int
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plateau:
    """A metric is watched; when it gets no better any more, the next phase begins."""

    monitor: str
    """The metric's name, as validation logs it."""
    mode: Literal["min", "max"] = "min"
    """Whether less is better, or more."""
    patience: int = 2
    """How many validations in a row may bring nothing better before the next phase begins."""
    min_delta: float = 0.0
    """By how much a value must be better to count."""
    max_epochs: int | None = None
    """After so many epochs the next phase begins in any case."""

    def __str__(self) -> str:
        limit = "" if self.max_epochs is None else f" or after {self.max_epochs} epochs"
        return f"when {self.monitor} stalls (patience {self.patience}){limit}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall:
    """How a metric has done since the phase began."""

    best: float | None = None
    """The best value."""
    mark: float | None = None
    """The last value that was better by `min_delta` than the one before it: the one to beat."""
    count: int = 0
    """How many validations in a row have not beaten it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run has come in its schedule."""

    began: tuple[Position, ...] = ()
    """Where each phase so far began."""
    stall: Stall = field(default_factory=Stall)
    """Of the metric that ends the present phase, if one does."""

    @property
    def phase(self) -> int:
        """The index of the present phase."""
        return len(self.began) - 1

    def moved(self, phase: int, here: Position) -> "Progress":
        """The progress of a run that comes to a phase here, and to those before it as well."""
        if phase <= self.phase:
            return self
        return Progress(began=(*self.began, *[here] * (phase - self.phase)))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for a checkpoint."""
        return {"began": [list(position) for position in self.began], "stall": asdict(self.stall)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Progress":
        """What `to_dict` gave."""
        began = tuple(Position(*position) for position in data["began"])
        return cls(began=began, stall=Stall(**data["stall"]))


def observe(stall: Stall, value: float, plateau: Plateau) -> Stall:
    """What is known of a metric after one more validation.

    >>> plateau = Plateau(monitor="val/loss", min_delta=0.1)
    >>> stall = observe(Stall(), 1.0, plateau)
    >>> observe(stall, 0.95, plateau)
    Stall(best=0.95, mark=1.0, count=1)
    >>> observe(stall, 0.8, plateau)
    Stall(best=0.8, mark=0.8, count=0)
    """
    best = value if _is_better(value, stall.best, plateau.mode) else stall.best
    if _is_better(value, stall.mark, plateau.mode, by=plateau.min_delta):
        return Stall(best=best, mark=value)
    return replace(stall, best=best, count=stall.count + 1)


def is_over(plateau: Plateau, stall: Stall, *, epochs: int) -> bool:
    """Whether the phase that a plateau ends is over, after so many epochs of it.

    >>> plateau = Plateau(monitor="val/loss", patience=2, max_epochs=5)
    >>> [is_over(plateau, Stall(count=count), epochs=3) for count in range(4)]
    [False, False, True, True]
    >>> is_over(plateau, Stall(), epochs=5)
    True
    """
    is_late = plateau.max_epochs is not None and epochs >= plateau.max_epochs
    return is_late or stall.count >= plateau.patience


def refuse_unlogged(
    monitors: Iterable[str], values: Collection[str], logged: Collection[str]
) -> None:
    """Refuse to wait for a metric that never comes.

    Args:
        monitors: The metrics that a schedule watches.
        values: Those of them that are known when validation has ended.
        logged: All that are known then.

    Raises:
        ValueError: Names the metrics that are missing, and those that there are.
    """
    if missing := [name for name in monitors if name not in values]:
        have = ", ".join(sorted(logged)) or "none"
        raise ValueError(
            f"`on_plateau` watches {', '.join(map(repr, missing))}, which is not logged when"
            f" validation ends.{nearest(missing[0], logged)} Logged by then: {have}."
        )


def _is_better(
    value: float, than: float | None, mode: Literal["min", "max"], by: float = 0.0
) -> bool:
    """Whether a value is better than another; NaN never is, and anything is better than none."""
    if than is None:
        return value == value
    return value < than - by if mode == "min" else value > than + by

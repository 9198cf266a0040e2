"""The start of phases: the position of a run, and whether a metric has stalled.

Pure functions and plain numbers: a `Progress` is all the state that a checkpoint needs to resume.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, NamedTuple

from lit_finetune._errors import nearest


class Position(NamedTuple):
    """The current epoch, and the number of optimizer steps in the whole run."""

    epoch: int
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plateau:
    """A metric to watch; when it stops improving, the next phase begins."""

    monitor: str
    """The metric's name, as validation logs it."""
    mode: Literal["min", "max"] = "min"
    """Whether lower or higher values are better."""
    patience: int = 2
    """The number of validations in a row without improvement before the next phase begins."""
    min_delta: float = 0.0
    """The smallest change that counts as an improvement."""
    max_epochs: int | None = None
    """The next phase begins after so many epochs in any case."""

    def __str__(self) -> str:
        limit = "" if self.max_epochs is None else f" or after {self.max_epochs} epochs"
        return f"when {self.monitor} stalls (patience {self.patience}){limit}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall:
    """The history of a watched metric since the phase began."""

    best: float | None = None
    """The best value."""
    mark: float | None = None
    """The last value that improved on the previous `mark` by `min_delta`."""
    count: int = 0
    """The number of validations in a row that have not improved on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The progress of a run in its schedule."""

    phase_starts: tuple[Position, ...] = ()
    """The position at which each phase so far began."""
    stall: Stall = field(default_factory=Stall)
    """The stall of the metric that ends the current phase, if one does."""

    @property
    def phase(self) -> int:
        """The index of the current phase."""
        return len(self.phase_starts) - 1

    def advance(self, phase: int, position: Position) -> "Progress":
        """The progress after a phase, and all phases before it, have begun at a position."""
        if phase <= self.phase:
            return self
        return Progress(phase_starts=(*self.phase_starts, *[position] * (phase - self.phase)))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for a checkpoint."""
        return {"began": [list(start) for start in self.phase_starts], "stall": asdict(self.stall)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Progress":
        """Restore from the data of `to_dict`."""
        phase_starts = tuple(Position(*position) for position in data["began"])
        return cls(phase_starts=phase_starts, stall=Stall(**data["stall"]))


def observe(stall: Stall, value: float, plateau: Plateau) -> Stall:
    """Update a metric's stall with the value of one more validation.

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
    """Whether the phase that a plateau ends is over, after so many epochs in it.

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
    """Refuse to wait for a metric that is never logged.

    Args:
        monitors: The metrics that a schedule watches.
        values: Those of them that are logged when validation ends.
        logged: All metrics that are logged by then.

    Raises:
        ValueError: Names the missing metrics and the logged ones.
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
    """Whether a value is better than another; NaN never is, and any number is better than None."""
    if than is None:
        return value == value
    return value < than - by if mode == "min" else value > than + by

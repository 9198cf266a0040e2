"""The situations, and what is asked in each.

Every figure is a distance from what is right, so that 0 is right, whoever it is.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.peers import frozen, rates, runs
from benchmarks.peers.systems import System


@dataclass(frozen=True)
class Question:
    """One row of the table: what should hold, and what is measured."""

    text: str
    figure: str
    tolerance: float = 0.0


@dataclass(frozen=True)
class Situation:
    """A training, or a few, that gives a figure for each of its questions, in their order."""

    name: str
    measure: Callable[[System, Path], Iterator[float]]
    questions: tuple[Question, ...]
    ranks: int = 1


SITUATIONS: tuple[Situation, ...] = (
    Situation(
        "in-turn",
        runs.in_turn,
        (
            Question(
                "Blocks start one after another, each in its epoch",
                "parameters that move out of turn",
            ),
        ),
    ),
    Situation(
        "distributed",
        runs.distributed,
        (
            Question(
                "DDP, two processes: the replicas stay equal after an unfreeze",
                "largest difference between the processes' parameters",
            ),
            Question(
                "DDP: the head's phase sends the head's gradients and no more",
                "bytes more in a step",
            ),
        ),
        ranks=2,
    ),
    Situation(
        "resumed",
        runs.resumed,
        (
            Question(
                "Checkpoints load with `torch.load(…, weights_only=True)`",
                "checkpoints that do not",
            ),
            Question(
                "Resumed after any epoch, what had been unfrozen goes on training",
                "parameters that stand still",
            ),
            Question(
                "Resumed after any epoch, a run ends like an unbroken one",
                "largest difference in weights and buffers",
            ),
        ),
    ),
    Situation(
        "resumed-amid",
        runs.resumed_amid,
        (
            Question(
                "Resumed amid any epoch, a run ends like an unbroken one",
                "largest difference in weights and buffers",
            ),
        ),
    ),
    Situation(
        "resumed-plateau",
        runs.resumed_on_plateau,
        (
            Question(
                "Resumed after any epoch under `ReduceLROnPlateau`: the head's rate goes on",
                "largest relative error of the rate",
                rates.TOLERANCE,
            ),
        ),
    ),
    Situation(
        "frozen",
        frozen.frozen,
        (
            Question(
                "Frozen BatchNorm keeps its statistics",
                "largest change of a running mean or variance",
            ),
            Question(
                "Frozen BatchNorm uses its statistics, as in evaluation",
                "largest difference of its output",
            ),
            Question("Frozen dropout is off", "times that it dropped something"),
            Question(
                "Frozen parameters do not move, with AdamW and weight decay",
                "largest change",
            ),
        ),
    ),
    Situation(
        "fresh-norms",
        rates.fresh_norms,
        (
            Question(
                "Two blocks with equal fresh norm layers: all parameters join the optimizer",
                "parameters left out",
            ),
        ),
    ),
    Situation(
        "own-groups",
        rates.keeps_own_groups,
        (
            Question(
                "Groups and rates of the user's own are kept",
                "largest relative error of a rate",
                rates.TOLERANCE,
            ),
        ),
    ),
    Situation(
        "cli",
        rates.by_cli,
        (
            Question(
                "`--optimizer` of LightningCLI: the head at its rate, the backbone at a tenth",
                "largest relative error of a rate",
                rates.TOLERANCE,
            ),
        ),
    ),
    Situation(
        "evaluated-alone",
        runs.evaluated_alone,
        (
            Question(
                "`validate`, `test` and `predict` alone freeze nothing",
                "parameters that change sides",
            ),
        ),
    ),
    Situation(
        "tested-after-fit",
        runs.tested_after_fit,
        (
            Question(
                "`fit`, then `test`: what trained still requires a gradient",
                "parameters that change sides",
            ),
        ),
    ),
    Situation(
        "fitted-twice",
        runs.fitted_twice,
        (
            Question(
                "A second `fit` for two epochs more: all goes on training",
                "parameters that stand still",
            ),
            Question(
                "A second `fit`: the backbone has a tenth of the head's rate",
                "largest relative error of a rate",
                rates.TOLERANCE,
            ),
        ),
    ),
    Situation(
        "second-trainer",
        runs.second_trainer,
        (
            Question(
                "One callback object in a second Trainer does the same again",
                "largest difference in weights and buffers",
            ),
        ),
    ),
    Situation(
        "too-late",
        runs.too_late,
        (
            Question("A block that starts after `max_epochs`: the user is told", "1 if not"),
            Question("`max_epochs` is the user's", "epochs trained beyond it"),
        ),
    ),
    Situation(
        "compiled",
        runs.compiled,
        (
            Question(
                "`backbone = torch.compile(…)`: the same schedule works",
                "parameters that stand still",
            ),
        ),
    ),
)

SCHEDULER_SITUATIONS: tuple[Situation, ...] = tuple(
    Situation(
        name,
        partial(rates.under_scheduler, name=name),
        (Question(f"`{name}`", "largest relative error of the rate", rates.TOLERANCE),),
    )
    for name in rates.SCHEDULERS
)

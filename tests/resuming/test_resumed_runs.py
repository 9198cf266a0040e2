"""A run that is stopped and goes on is the run that was never stopped: bits, and all it logs."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from lit_finetune.resuming.position import ResumePoint, normalize_counters, read_point
from tests.resuming.resumed_kinds import KINDS, kept_pictures
from tests.resuming.resumed_runs import (
    BATCHES,
    CADENCES,
    Run,
    Situation,
    compare,
    run,
    three_digits,
)

TELLING = [
    ("cosine", "3 steps", (14, 16)),
    ("plateau phases", "time", (10,)),
    ("accumulated later", "3 steps", (8,)),
    ("averaged", "time", (5,)),
    ("averaged in the end", "3 steps", (8,)),
    ("views", "3 steps", (8,)),
]
RARELY = [
    ("cosine", "an epoch's last batch", (7, 14)),
    ("validated twice", "time", (7,)),
    ("plateau scheduler", "each epoch", (6,)),
    ("accumulated", "3 steps", (10,)),
    ("never validated", "time", (10,)),
    ("counted in steps", "each epoch", (6,)),
    ("workers", "time", (3,)),
]
STOPS = ((8,), (10,), (6, 15))
ACCUMULATED = ("accumulated", "averaged at some steps")
ALL = [
    (kind, cadence, STOPS[(row + column) % len(STOPS)])
    for row, kind in enumerate(KINDS)
    for column, cadence in enumerate(CADENCES)
    if kind not in ACCUMULATED or cadence != "an epoch's last batch"  # 5 steps are no epoch there
    if row < 15 or cadence != "time"
]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """The run of a kind that is never stopped, made once."""
    return cache(lambda kind: run(Situation(**KINDS[kind]), tmp_path_factory.mktemp("whole")))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "cadence", "stops"), TELLING)
def test_a_stopped_run_ends_and_logs_as_the_unbroken_one(
    tmp_path: Path,
    unbroken: Callable[[str], Run],
    kind: str,
    cadence: str,
    stops: tuple[int, ...],
) -> None:
    situation = Situation(keep=CADENCES[cadence], **KINDS[kind])

    assert compare(situation, tmp_path, *stops, unbroken=unbroken(kind)) == []


@pytest.mark.long
@pytest.mark.parametrize(("kind", "cadence", "stops"), [*RARELY, *ALL])
def test_wherever_it_is_stopped(
    tmp_path: Path,
    unbroken: Callable[[str], Run],
    kind: str,
    cadence: str,
    stops: tuple[int, ...],
) -> None:
    situation = Situation(keep=CADENCES[cadence], **KINDS[kind])

    assert compare(situation, tmp_path, *stops, unbroken=unbroken(kind)) == []


@pytest.mark.slow
@pytest.mark.parametrize("datamodule", [three_digits, kept_pictures])
def test_a_run_that_overfits_a_few_batches_goes_on_amid_an_epoch(
    tmp_path: Path, datamodule: Callable[..., Any]
) -> None:
    options: dict[str, Any] = {"overfit_batches": 3}
    situation = Situation(keep=CADENCES["time"], datamodule=datamodule, trainer=options)

    assert compare(situation, tmp_path, 5) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"trainer": {"accumulate_grad_batches": 2}}, "accumulate_grad_batches=1, and this run"),
        ({"trainer": {"limit_train_batches": 4}}, "this run has 4 batches an epoch"),
        ({"data": {"val_split": 0.3}}, "training pictures, and this run has"),
    ],
)
def test_another_division_amid_an_epoch_is_refused(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    run(Situation(keep=CADENCES["3 steps"]), tmp_path, stop=4)

    with pytest.raises(ValueError, match=words):
        run(Situation(**change), tmp_path, resume=True)


def loops(epoch: int, **counts: int) -> dict[str, Any]:
    """The state of Lightning's loops amid an epoch, after some batches."""
    names = ("ready", "started", "processed", "completed")
    epochs = dict(zip(names, (epoch + 1, epoch + 1, epoch, epoch), strict=True))
    batches = {name: counts[name] for name in names}
    none = dict.fromkeys(names, 0)
    return {
        "epoch_progress": {"current": dict(epochs), "total": dict(epochs)},
        "epoch_loop.batch_progress": {
            "current": dict(batches),
            "total": dict(batches),
            "is_last_batch": counts["ready"] == BATCHES,
        },
        "epoch_loop.val_loop.batch_progress": {"current": none, "is_last_batch": False},
    }


@pytest.mark.parametrize(
    ("ready", "processed", "completed", "expected"),
    [
        (3, 3, 2, ResumePoint(epoch=1, batches=3, is_complete=False)),  # in on_train_batch_end
        (3, 2, 2, ResumePoint(epoch=1, batches=2, is_validated=True)),  # in on_train_batch_start
        (5, 4, 4, ResumePoint(epoch=1, batches=4, is_validated=True)),  # in that of the last batch
        (5, 5, 4, ResumePoint(epoch=1, batches=5, is_last_batch=True, is_complete=False)),
    ],
)
def test_counters_say_what_is_done(
    ready: int, processed: int, completed: int, expected: ResumePoint
) -> None:
    state = loops(1, ready=ready, started=processed, processed=processed, completed=completed)
    point = read_point(state)
    normalize_counters(state, point)

    assert point == expected
    assert set(state["epoch_loop.batch_progress"]["current"].values()) == {expected.batches}

"""A run that is stopped and goes on is the run that was never stopped: bits, and all it logs."""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from lit_finetune.callbacks import FrozenPrefixCache
from lit_finetune.resume_point import ResumePoint, read_point, tidy
from tests.resumed_runs import BATCHES, CADENCES, EPOCHS, Run, Situation, compare, run

PHASES = [
    {"modules": "head", "warmup_steps": 3},
    {"step": 4, "modules": "layer2", "lr_scale": 0.5, "warmup_steps": 4},
    {
        "on_plateau": {"monitor": "val/loss", "patience": 1, "min_delta": 0.5, "max_epochs": 2},
        "modules": "layer1",
        "restore_best": True,
    },
]
MOMENTUM = partial(SGD, momentum=0.9)
PLATEAU = {"optimizer": MOMENTUM, "lr_scheduler": partial(ReduceLROnPlateau, patience=0)}
ONE_CYCLE = {
    "optimizer": MOMENTUM,
    "lr_scheduler": partial(OneCycleLR, max_lr=0.1, total_steps=EPOCHS * BATCHES),
    "lr_scheduler_interval": "step",
}
KINDS: dict[str, dict[str, Any]] = {
    "cosine": {},
    "plateau phases": {"schedule": PHASES},
    "validated twice": {"schedule": PHASES, "trainer": {"val_check_interval": 2}},
    "plateau scheduler": {"model": PLATEAU},
    "one cycle": {"model": ONE_CYCLE},
    "accumulated": {"trainer": {"accumulate_grad_batches": 2}},
    "averaged": {"callbacks": lambda: [EMAWeightAveraging(decay=0.7)]},
    "rarely validated": {"trainer": {"check_val_every_n_epoch": 2}},
    "validated by steps": {"trainer": {"val_check_interval": 3, "check_val_every_n_epoch": None}},
    "never validated": {
        "schedule": {0: "head", 1: "layer2"},
        "trainer": {"limit_val_batches": 0},
    },
    "counted in steps": {"trainer": {"max_epochs": -1, "max_steps": 18}},
    "mixed": {"model": {"mixup_alpha": 0.3, "cutmix_alpha": 0.5}},
    "workers": {"data": {"num_workers": 1}},
    "prefixes": {
        "data": {"train_augmentation": "none"},
        "callbacks": lambda: [FrozenPrefixCache()],
    },
    "views": {"callbacks": lambda: [FrozenPrefixCache(views=2)]},
}
TELLING = [
    ("cosine", "3 steps", (14, 16)),
    ("cosine", "an epoch's last batch", (7, 14)),
    ("plateau phases", "time", (10,)),
    ("validated twice", "time", (7,)),
    ("plateau scheduler", "each epoch", (6,)),
    ("accumulated", "3 steps", (10,)),
    ("averaged", "time", (5,)),
    ("never validated", "time", (10,)),
    ("counted in steps", "each epoch", (6,)),
    ("workers", "time", (3,)),
    ("views", "3 steps", (8,)),
]
STOPS = ((8,), (10,), (6, 15))
ALL = [
    (kind, cadence, STOPS[(row + column) % len(STOPS)])
    for row, kind in enumerate(KINDS)
    for column, cadence in enumerate(CADENCES)
    if (kind, cadence) != ("accumulated", "an epoch's last batch")  # 5 steps are no epoch there
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
@pytest.mark.parametrize(("kind", "cadence", "stops"), ALL)
def test_wherever_it_is_stopped(
    tmp_path: Path,
    unbroken: Callable[[str], Run],
    kind: str,
    cadence: str,
    stops: tuple[int, ...],
) -> None:
    situation = Situation(keep=CADENCES[cadence], **KINDS[kind])

    assert compare(situation, tmp_path, *stops, unbroken=unbroken(kind)) == []


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
        (3, 3, 2, ResumePoint(epoch=1, batches=3, is_settled=False)),  # in on_train_batch_end
        (3, 2, 2, ResumePoint(epoch=1, batches=2, is_validated=True)),  # in on_train_batch_start
        (5, 4, 4, ResumePoint(epoch=1, batches=4, is_validated=True)),  # in that of the last batch
        (5, 5, 4, ResumePoint(epoch=1, batches=5, is_last_batch=True, is_settled=False)),
    ],
)
def test_counters_say_what_is_done(
    ready: int, processed: int, completed: int, expected: ResumePoint
) -> None:
    state = loops(1, ready=ready, started=processed, processed=processed, completed=completed)
    point = read_point(state)
    tidy(state, point)

    assert point == expected
    assert set(state["epoch_loop.batch_progress"]["current"].values()) == {expected.batches}

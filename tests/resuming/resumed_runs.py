"""Runs that are stopped and go on, held against the one that was never stopped.

A `Situation` says how a run is set up. `compare` stops it before the steps that are named, resumes
it from its `last.ckpt` each time, and names what differs: weights, optimizer, rates and all that
was logged, to the last bit.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import Logger
from torch import nn

from lit_finetune import FinetuneClassifier
from lit_finetune.callbacks import (
    BestCheckpoint,
    FreezeUnfreezeCallback,
    LastCheckpoint,
)
from lit_finetune.datamodules import DigitsDataModule

EPOCHS, BATCHES = 4, 5
Run = tuple[dict[str, Any], dict[tuple[int, str], float]]
"""What comes out, and all that was logged."""
CADENCES: dict[str, dict[str, Any]] = {
    "each epoch": {},
    "3 steps": {"every_n_train_steps": 3},
    "an epoch's last batch": {"every_n_train_steps": BATCHES},
    "time": {"train_time_interval": timedelta(0)},
}


class Net(nn.Module):
    """Two stages with what makes resuming hard: batch statistics and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(4, 8, 3, 2), nn.BatchNorm2d(8), nn.Dropout(0.2))
        self.fc = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From pictures to logits."""
        return self.fc(self.layer2(self.layer1(x)).mean((2, 3)))


class Stop(Exception):
    """A run is broken off, as by a kill."""


class StopBefore(Callback):
    """Break a run off before a batch of the whole run."""

    def __init__(self, batch: int | None) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx == self.batch:
            raise Stop


class Signal(Callback):
    """Send this program a signal in a hook, when a batch of the whole run is done or due."""

    def __init__(self, hook: str, batch: int, signum: int, times: int = 1) -> None:
        self.batch, self.signum, self.times = batch, signum, times
        setattr(self, hook, self._send)

    def _send(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        if trainer.fit_loop.total_batch_idx == self.batch and not trainer.sanity_checking:
            for _ in range(self.times):
                os.kill(os.getpid(), self.signum)
            self.batch = -1


class Record(Logger):
    """All that is logged, by step and name."""

    name, version = "record", 0

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[tuple[int, str], float] = {}

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Nothing."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Keep them."""
        self.rows.update({(step or 0, name): float(value) for name, value in metrics.items()})


def three_digits(**options: Any) -> DigitsDataModule:
    """Data that needs no file."""
    return DigitsDataModule(digits=[0, 1, 2], **options)


@dataclass(frozen=True, kw_only=True)
class Situation:
    """How a run is set up."""

    schedule: Any = field(default_factory=lambda: {0: "head", 1: "layer2", 3: "layer1"})
    keep: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    callbacks: Callable[[], list[Callback]] = list
    datamodule: Callable[..., Any] = three_digits


def run(
    situation: Situation,
    folder: Path,
    *,
    stop: int | Callback | None = None,
    resume: bool = False,
) -> Run:
    """Train from the start or from `last.ckpt`: what came out, and all that was logged."""
    seed_everything(1, verbose=False)
    model = FinetuneClassifier(Net(), num_classes=3, drop_rate=0.1, **situation.model)
    record = Record()
    best = BestCheckpoint(folder, monitor="val/acc", mode="max", filename="best")
    options: dict[str, Any] = {"max_epochs": EPOCHS, "limit_train_batches": BATCHES}
    trainer = Trainer(
        **{**options, "limit_val_batches": 2, **situation.trainer},
        accelerator="cpu",
        logger=[record],
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[
            LastCheckpoint(folder, **situation.keep),
            best,
            FreezeUnfreezeCallback(situation.schedule),
            LearningRateMonitor(),
            stop if isinstance(stop, Callback) else StopBefore(stop),
            *situation.callbacks(),
        ],
    )
    data = {"image_size": 10, "batch_size": 16, "num_workers": 0, "train_augmentation": "auto"}
    ckpt_path = folder / "last.ckpt" if resume else None
    try:
        trainer.fit(
            model,
            situation.datamodule(**{**data, **situation.data}),
            ckpt_path=ckpt_path,
            weights_only=True,
        )
    except (Stop, SystemExit) as error:
        return {"exit": getattr(error, "code", None)}, record.rows
    end = {
        "weights": model.state_dict(),
        "optimizer": trainer.optimizers[0].state_dict(),
        "schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
        "steps": trainer.global_step,
        "epochs": trainer.current_epoch,
        "best": best.best_model_score,
        "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
    }
    return end, record.rows


def compare(
    situation: Situation, folder: Path, *stops: int | Callback, unbroken: Run | None = None
) -> list[str]:
    """What of a run that was stopped before these batches, and went on, is not as it should be."""
    whole, wanted = unbroken or run(situation, folder / "whole")
    rows: dict[tuple[int, str], float] = {}
    for place, stop in enumerate((*stops, None)):
        end, logged = run(situation, folder / "broken", stop=stop, resume=place > 0)
        rows |= logged
    return [*differences(whole, end), *differences(by_name(wanted), by_name(rows), "/logged")]


def by_name(rows: dict[tuple[int, str], float]) -> dict[str, float]:
    """What was logged, under one name each."""
    return {f"{name} at step {step}": value for (step, name), value in rows.items()}


def differences(left: Any, right: Any, where: str = "") -> list[str]:
    """The places where two nested results are not the same to the last bit."""
    if isinstance(left, dict) and isinstance(right, dict):
        keys = sorted(left.keys() | right.keys(), key=str)
        pairs = [(key, left.get(key), right.get(key)) for key in keys]
    elif isinstance(left, list | tuple) and isinstance(right, list | tuple):
        pairs = [
            ("length", len(left), len(right)),
            *zip(range(len(left)), left, right, strict=False),
        ]
    elif isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return [] if torch.equal(left, right) else [where]
    else:
        is_same = left == right or (left != left and right != right)
        return [] if is_same else [f"{where}: {right} for {left}"]
    return [each for key, a, b in pairs for each in differences(a, b, f"{where}/{key}")]

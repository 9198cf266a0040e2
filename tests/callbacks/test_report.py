"""What is told at the end of a run."""

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from lit_finetune import FinetuneClassifier
from lit_finetune.callbacks import (
    BestCheckpoint,
    FreezeUnfreezeCallback,
    LastCheckpoint,
    RunReport,
)
from lit_finetune.datamodules import DigitsDataModule


def fit(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    trainer = Trainer(
        **{"max_epochs": 2, "enable_checkpointing": bool(callbacks), **options},
        limit_train_batches=2,
        accelerator="cpu",
        logger=CSVLogger(folder),
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[RunReport(), *callbacks],
    )
    trainer.fit(
        FinetuneClassifier(network, num_classes=2),
        DigitsDataModule(digits=[0, 1], batch_size=16, image_size=8),
    )
    return trainer


def test_the_report_says_what_was_trained_how_well_and_where_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = BestCheckpoint(monitor="val/acc", mode="max")

    trainer = fit(tmp_path, FreezeUnfreezeCallback({0: "head", 1: "all"}), best, LastCheckpoint())

    text = capsys.readouterr().out
    lines = [line.split() for line in text.splitlines()]
    assert ["phases", "epoch", "starts", "to", "train", "trainable", "share"] in lines
    assert ["0", "head", "10", "8.2%"] in lines
    assert ["1", "all", "122", "100.0%"] in lines
    assert "2 epochs, 4 steps" in text
    assert f"val/acc {trainer.callback_metrics['val/acc']:.4f}" in text
    assert ["best", best.best_model_path, "(val/acc", f"{best.best_model_score:.4f})"] in lines
    folder = tmp_path / "lightning_logs/version_0"
    assert ["last", str(folder / "checkpoints/last.ckpt")] in lines
    assert ["logs", str(folder)] in lines


@pytest.mark.parametrize("callbacks", [[], [ModelCheckpoint()], [ModelCheckpoint(save_last=True)]])
def test_a_run_without_our_callbacks_is_told_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], callbacks: list[Callback]
) -> None:
    fit(tmp_path, *callbacks)

    text = capsys.readouterr().out
    assert "2 epochs, 4 steps" in text
    assert text.count(".ckpt") == sum(
        bool(path) for each in callbacks for path in (each.best_model_path, each.last_model_path)
    )


def test_a_trial_run_and_an_evaluation_report_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = fit(tmp_path, fast_dev_run=True)
    trainer.validate(trainer.lightning_module, DigitsDataModule(digits=[0, 1], image_size=8))

    assert "What was trained" not in capsys.readouterr().out

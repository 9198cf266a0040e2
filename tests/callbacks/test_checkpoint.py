"""The best checkpoint and the last."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from lit_finetune import FinetuneClassifier
from lit_finetune.callbacks import BestCheckpoint, LastCheckpoint
from lit_finetune.datamodules import DigitsDataModule


def fit(folder: Path, ckpt_path: str | None = None, **options: Any) -> BestCheckpoint:
    """Train, with the first epoch as the best, and return who kept it."""
    best = BestCheckpoint(folder, monitor="epoch", mode="min")
    trainer = Trainer(
        **{"max_epochs": 3, **options},
        limit_train_batches=4,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[best, LastCheckpoint(folder)],
    )
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    data = DigitsDataModule(digits=[0, 1], batch_size=16, image_size=8)
    model = FinetuneClassifier(network, num_classes=2)
    trainer.fit(model, data, ckpt_path=ckpt_path, weights_only=True)
    return best


def test_the_last_checkpoint_is_that_of_the_last_epoch_though_another_is_the_best(
    tmp_path: Path,
) -> None:
    fit(tmp_path)

    assert {path.name for path in tmp_path.iterdir()} == {"epoch=0-step=4.ckpt", "last.ckpt"}
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert (last["epoch"], last["global_step"]) == (2, 12)


@pytest.mark.parametrize("rare", [{"limit_val_batches": 0}, {"check_val_every_n_epoch": 9}])
def test_the_last_checkpoint_needs_no_validation(tmp_path: Path, rare: dict[str, int]) -> None:
    fit(tmp_path, **rare)

    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"] == 2


def test_a_resumed_run_in_another_folder_remembers_the_best_and_leaves_it_there(
    tmp_path: Path,
) -> None:
    before = fit(tmp_path / "one")

    after = fit(tmp_path / "two", str(tmp_path / "one/last.ckpt"), max_epochs=5)

    assert after.best_model_path == before.best_model_path
    assert after.best_model_score == before.best_model_score
    assert Path(before.best_model_path).exists()
    assert [path.name for path in (tmp_path / "two").iterdir()] == ["last.ckpt"]

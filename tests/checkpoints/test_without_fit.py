"""A checkpoint can be saved without a run: `trainer.strategy.connect`, then `save_checkpoint`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_finetune import FinetuneClassifier
from lit_finetune.callbacks import (
    BestCheckpoint,
    FreezeUnfreezeCallback,
    FrozenPrefixCache,
    LastCheckpoint,
    LinearProbe,
    RunReport,
)


class Net(nn.Module):
    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(images)).relu().mean((2, 3)))


NET = f"{__name__}.Net"
PICTURES = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def make_trainer(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    return Trainer(
        **{"max_epochs": 1, "enable_checkpointing": False, **options},
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=list(callbacks),
    )


@pytest.mark.parametrize("weights_only", [True, False])
@pytest.mark.parametrize(
    "make",
    [
        lambda: [],
        lambda: [FreezeUnfreezeCallback({0: "head", 1: "all"})],
        lambda: [FreezeUnfreezeCallback("gradual")],
        lambda: [LastCheckpoint("here")],
        lambda: [BestCheckpoint("here", monitor="val/acc")],
        lambda: [LinearProbe(), RunReport()],
        lambda: [FreezeUnfreezeCallback({0: "head"}), FrozenPrefixCache()],
        lambda: [EMAWeightAveraging()],
    ],
)
def test_a_checkpoint_of_a_network_that_was_never_trained_loads_to_the_same_answers(
    make: Callable[[], list[Callback]], weights_only: bool, tmp_path: Path
) -> None:
    model, callbacks = FinetuneClassifier(NET, num_classes=3), make()
    keeps = any(isinstance(each, LastCheckpoint | BestCheckpoint) for each in callbacks)
    trainer = make_trainer(tmp_path, *callbacks, enable_checkpointing=keeps)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "saved.ckpt", weights_only=weights_only)
    loaded = FinetuneClassifier.load_from_checkpoint(tmp_path / "saved.ckpt", backbone=NET)
    with torch.no_grad():
        assert torch.equal(model.eval()(PICTURES), loaded.eval()(PICTURES))


@pytest.mark.parametrize("run", ["fit", "validate"])
def test_a_model_of_another_run_can_be_saved_by_a_new_trainer(run: str, tmp_path: Path) -> None:
    data = DataLoader(TensorDataset(PICTURES, torch.arange(6) % 3), batch_size=3)
    model = FinetuneClassifier(NET, num_classes=3)
    getattr(make_trainer(tmp_path, FreezeUnfreezeCallback({0: "head"})), run)(model, data)
    trainer = make_trainer(tmp_path)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    loaded = FinetuneClassifier.load_from_checkpoint(tmp_path / "saved.ckpt", backbone=NET)
    with torch.no_grad():
        assert torch.equal(model.eval()(PICTURES), loaded.eval()(PICTURES))


def test_a_run_starts_from_a_checkpoint_that_was_saved_without_one(tmp_path: Path) -> None:
    model = FinetuneClassifier(NET, num_classes=3)
    trainer = make_trainer(tmp_path)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    new = FinetuneClassifier(NET, num_classes=3, weights=str(tmp_path / "saved.ckpt"))
    assert torch.equal(model.get_classifier().weight, new.get_classifier().weight)

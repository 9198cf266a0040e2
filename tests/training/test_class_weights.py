from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn
from torch.nn import functional as F

from lit_finetune import FinetuneClassifier
from lit_finetune.datamodules import ImageFolderDataModule
from lit_finetune.training.class_weights import balanced_weights


@pytest.mark.parametrize("counts", [[5, 5, 5], [1, 9], [244, 153, 2, 71], [1]])
def test_balanced_weights_are_those_of_scikit_learn(counts: list[int]) -> None:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    reference = compute_class_weight("balanced", classes=np.unique(labels), y=labels)
    names = [f"class {label}" for label in range(len(counts))]
    assert balanced_weights(dict(zip(names, counts, strict=True)), names) == pytest.approx(
        list(reference)
    )


def test_weights_come_in_the_order_of_the_classes_and_not_of_the_counts() -> None:
    assert balanced_weights({"bee": 30, "ant": 10}, ["ant", "bee"]) == [2.0, pytest.approx(2 / 3)]


def test_classes_without_pictures_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="no pictures of bee, wasp"):
        balanced_weights({"ant": 3, "bee": 0, "wasp": 0}, ["ant", "bee", "wasp"])


def test_weights_that_nobody_counted_are_refused() -> None:
    with pytest.raises(ValueError, match="pass a list of weights"):
        balanced_weights(None, ["ant", "bee"])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).mean((2, 3)))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """More pictures of some classes than of others, and otherwise so in validation."""
    draw = np.random.default_rng(0)
    for part, counts in {"train": (12, 5, 3), "val": (3, 6, 4)}.items():
        for name, count in zip("abc", counts, strict=True):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 255, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path


class Renamed(ImageFolderDataModule):
    """The same pictures, with their classes in another order."""

    @property
    def classes(self) -> list[str]:
        return super().classes[::-1]


def make_trainer(folder: Path) -> Trainer:
    return Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )


@pytest.mark.parametrize("data", [ImageFolderDataModule, Renamed])
@pytest.mark.parametrize("route", ["checkpoint", "load_from_checkpoint", "same object"])
def test_an_evaluation_weighs_the_classes_as_the_run_did(
    photos: Path, tmp_path: Path, route: str, data: type[ImageFolderDataModule]
) -> None:
    options = {"num_workers": 0, "batch_size": 5, "image_size": 16}
    model = FinetuneClassifier(Net(), num_classes=3, class_weights="balanced", lr=1e-2)
    trainer = make_trainer(tmp_path)
    trainer.fit(model, ImageFolderDataModule(photos, **options))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    if route != "same object":
        model = FinetuneClassifier(Net(), num_classes=3, class_weights="balanced")
    if route == "load_from_checkpoint":
        model = FinetuneClassifier.load_from_checkpoint(tmp_path / "a.ckpt", backbone=Net())

    found = make_trainer(tmp_path).validate(
        model,
        data(photos, **options),
        ckpt_path=tmp_path / "a.ckpt" if route == "checkpoint" else None,
        verbose=False,
    )

    seen = trainer.callback_metrics["val/loss"].item()
    assert found[0]["val/loss"] == pytest.approx(seen, rel=1e-6)
    assert seen != pytest.approx(unweighted(trainer, photos, options), rel=1e-3)


def unweighted(trainer: Trainer, photos: Path, options: dict[str, Any]) -> float:
    """The mean of the losses of all pictures, by torch alone."""
    data = ImageFolderDataModule(photos, **options)
    data.setup("fit")
    model = trainer.lightning_module.eval()
    with torch.no_grad():
        images, labels = (torch.cat(parts) for parts in zip(*data.val_dataloader(), strict=True))
        return F.cross_entropy(model(images), labels).item()

"""What a resumed run says of its data, and of there being nothing left to train."""

import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from torch import nn

from lit_finetune import FinetuneClassifier
from lit_finetune.datamodules import ImageFolderDataModule


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for shade, part in enumerate(("train", "val")):
        for index, name in enumerate(("ant", "bee")):
            folder = tmp_path / "photos" / part / name
            folder.mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (9, 9), (90 * index, number, 50 * shade)).save(
                    folder / f"{number}.png"
                )
    return tmp_path / "photos"


def fit(photos: Path, *, steps: int, augmentation: str, ckpt_path: Path | None = None) -> Trainer:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = FinetuneClassifier(network.append(nn.Linear(4, 2)), num_classes=2, image_size=8)
    data = ImageFolderDataModule(
        photos, batch_size=2, num_workers=0, train_augmentation=augmentation
    )
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, data, ckpt_path=ckpt_path, weights_only=True)
    return trainer


@pytest.mark.parametrize("steps", [3, 4])
def test_another_augmentation_at_a_resume_is_told(steps: int, photos: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.ckpt"
    fit(photos, steps=steps, augmentation="auto").save_checkpoint(file)
    with pytest.warns(UserWarning, match="`train_augmentation` is 'none', but was 'auto'"):
        fit(photos, steps=steps + 2, augmentation="none", ckpt_path=file)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(photos, steps=steps + 2, augmentation="auto", ckpt_path=file)
    assert not [each for each in caught if "train_augmentation" in str(each.message)]

    content = torch.load(file, weights_only=True)
    content["lit_finetune_data"] = ["anything"]
    torch.save(content, file)
    fit(photos, steps=steps + 2, augmentation="none", ckpt_path=file)


def test_a_run_that_had_ended_says_that_nothing_was_trained(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "x.ckpt"
    fit(photos, steps=4, augmentation="auto").save_checkpoint(file)
    with caplog.at_level("INFO"):
        fit(photos, steps=4, augmentation="auto", ckpt_path=file)
    assert "Nothing was trained or validated" in caplog.text

"""The logs and checkpoints of runs in a folder of pictures are no class."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lit_finetune.datamodules import ImageFolderDataModule


def fill(root: Path, *classes: str) -> Path:
    for index, name in enumerate(f"{each}/{i}.png" for each in classes for i in range(4)):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    return root


@pytest.mark.parametrize("parts", ["", "train/"])
@pytest.mark.parametrize(
    ("folder", "file"),
    [
        ("lightning_logs", "version_0/checkpoints/last.ckpt"),
        ("lightning_logs", "version_0/confusion.png"),
        ("my_logs", "ants_resnet/version_3/metrics.csv"),
        ("my_logs", "first/events.out.tfevents.17.host.1.0"),
        ("checkpoints", "epoch=0.ckpt"),
        ("runs", "best.ckpt"),
        ("wandb", "run-20260101_120000-abc/files/media/images/a.png"),
        ("mlruns", "0/meta.yaml"),
    ],
)
def test_a_folder_of_runs_is_no_class(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, folder: str, file: str, parts: str
) -> None:
    root = fill(tmp_path / "photos", f"{parts}ant", f"{parts}bee")
    before = ImageFolderDataModule(root, num_workers=0)
    before.prepare_data()
    path = root / parts / folder / file
    path.parent.mkdir(parents=True)
    if path.suffix == ".png":
        Image.new("RGB", (8, 8)).save(path)
    path.touch()
    caplog.set_level("INFO")
    caplog.clear()

    data = ImageFolderDataModule(root, num_workers=0)
    data.prepare_data()

    assert data.classes == ["ant", "bee"]
    assert data.read_samples("train").names == before.read_samples("train").names
    told = [text for text in caplog.messages if folder in text]
    assert len(told) == 1
    assert f"logs and checkpoints of runs, and no class: 1 ('{parts}{folder}')" in told[0]


@pytest.mark.parametrize("name", ["checkpoints", "lightning_logs", "wandb", "version_2"])
def test_a_class_may_be_called_so_if_it_holds_pictures(tmp_path: Path, name: str) -> None:
    root = fill(tmp_path / "photos", "ant", name)
    root.joinpath(name, "model.ckpt").touch()

    assert ImageFolderDataModule(root, num_workers=0).classes == ["ant", name]


def test_an_empty_class_is_refused_as_ever(tmp_path: Path) -> None:
    root = fill(tmp_path / "photos", "ant", "bee")
    root.joinpath("cat").mkdir()

    with pytest.raises(ValueError, match=r"no pictures of 1 \('cat'\)"):
        ImageFolderDataModule(root, num_workers=0).prepare_data()

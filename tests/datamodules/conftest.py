"""Small pictures on disk, and a network that only counts."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from zlib import crc32

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from torch import Tensor, nn

from lit_finetune.images.data_config import DataConfig


class SeesPictures(LightningModule):
    """A network of one layer that keeps the labels it was shown."""

    def __init__(self, num_classes: int = 2, size: int = 16) -> None:
        super().__init__()
        self.data_config = DataConfig(image_size=(size, size), resize_size=size)
        self.layers = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(3), nn.Linear(3, num_classes)
        )
        self.seen: list[Tensor] = []
        self.shapes: set[tuple[int, ...]] = set()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.seen.append(batch[1])
        self.shapes.add(tuple(batch[0].shape[1:]))
        return nn.functional.cross_entropy(self.layers(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.layers(batch[0])

    test_step = validation_step

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return batch[1]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def network() -> SeesPictures:
    return SeesPictures()


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    return Trainer(
        max_epochs=1,
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


@pytest.fixture
def make_pictures() -> Callable[..., None]:
    """Writes `count` pictures of one colour a class into `root/<name>` for each name."""

    def write(root: Path, suffix: str = ".png", **counts: int) -> None:
        for shade, (name, count) in enumerate(counts.items()):
            folder = root / name
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                of_folder = crc32(root.name.encode()) % 256  # in no other folder the same pictures
                picture = Image.new("RGB", (20, 18), (shade * 40, i % 256, of_folder))
                picture.save(folder / f"{i:03d}{suffix}")

    return write


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What Lightning's logger says, which does not reach `caplog` by itself."""
    logger = logging.getLogger("lightning.pytorch")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)

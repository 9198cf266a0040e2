"""How fast photographs come from the second epoch on: beside torchvision's `ImageFolder`.

For training (a random part of random size, mirrored, normalised) and for validation (resized, the
centre cut out, normalised): the training photographs of the ants and bees where LIT_FINETUNE_DATA
names the folder, those of `--data-dir`, or drawn ones of 500 x 375 pixels.

    python -m benchmarks.input_folder
"""

import argparse
import logging
import os
import tempfile
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from benchmarks.harness import Comparison, in_turn, parser, quicker, report
from lit_finetune.datamodules import ImageFolderDataModule
from lit_finetune.images.data_config import IMAGENET_MEAN, IMAGENET_STD


def main() -> None:
    """Measure training and validation, and report."""
    arguments = parser(__doc__, times=5)
    arguments.add_argument("--data-dir", help="with a folder a class")
    arguments.add_argument("--batch-size", type=int, default=32)
    arguments.add_argument("--workers", type=int, default=2, help="of ImageFolder, and uncached")
    given = arguments.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        root = photographs(given.data_dir, Path(folder, "photos"))
        kept = Path(folder, "kept")
        rows = [
            compared(root, given, kept, "training", "auto"),
            compared(root, given, kept, "validation", "none"),
        ]
    report(rows, given.out)


def compared(
    root: Path, given: argparse.Namespace, kept: Path, what: str, augmentation: Any
) -> Comparison:
    """One of the two, beside the peer; `cache: none` runs along."""
    name = f"ImageFolder with {given.workers} workers"
    began = time.perf_counter()
    own = ours(root, given, augmentation, kept)
    print(f"{what}: made ready in {time.perf_counter() - began:.1f} s", flush=True)
    ways = {
        "cache: disk": partial(epochs, own),
        name: partial(epochs, peer(root, given, what)),
        "cache: none": partial(epochs, ours(root, given, augmentation, None)),
    }
    figures = in_turn(ways, times=given.times)
    title = f"photographs for {what}, batches of {given.batch_size}: seconds for 1,000"
    return quicker(title, figures, "cache: disk", name, ">= 4")


def peer(root: Path, given: argparse.Namespace, what: str) -> Iterable[Any]:
    """Torchvision's dataset, transforms and torch's loader as every tutorial has them."""
    geometry: list[Any] = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()]
    if what == "validation":
        geometry = [transforms.Resize(256), transforms.CenterCrop(224)]
    finish = [transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    return DataLoader(
        datasets.ImageFolder(root, transforms.Compose([*geometry, *finish])),
        batch_size=given.batch_size,
        shuffle=what == "training",
        num_workers=given.workers,
        persistent_workers=given.workers > 0,
    )


def ours(
    root: Path, given: argparse.Namespace, augmentation: Any, cache_dir: Path | None
) -> Iterable[Any]:
    """The loader that a Trainer gets here; the cache, if there is one, is full."""
    data = ImageFolderDataModule(
        root,
        val_split=0.0,
        batch_size=given.batch_size,
        num_workers=given.workers if cache_dir is None else None,
        train_augmentation=augmentation,
        cache="none" if cache_dir is None else "disk",
        cache_dir=cache_dir,
    )
    data.setup("fit")
    return data.train_dataloader()


def epochs(batches: Iterable[Any], number: int = 3) -> float:
    """Go through all batches several times; the seconds for 1,000 pictures."""
    began = time.perf_counter()
    pictures = sum(len(labels) for _ in range(number) for _, labels in batches)
    return (time.perf_counter() - began) / pictures * 1000


def photographs(data_dir: str | None, empty: Path) -> Path:
    """The folder that was named, that of the ants and bees, or one that is drawn."""
    real = Path(os.environ.get("LIT_FINETUNE_DATA", empty), "hymenoptera", "train")
    if data_dir is not None:
        return Path(data_dir)
    return real if real.is_dir() else draw(empty)


def draw(root: Path, per_class: int = 120) -> Path:
    """Photographs of two classes, about as hard to decode as real ones."""
    rng = np.random.default_rng(0)
    for name in ("ants", "bees"):
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            noise = Image.fromarray(rng.integers(0, 256, (94, 125, 3), np.uint8))
            picture = noise.resize((500, 375)).filter(ImageFilter.GaussianBlur(1))
            picture.save(root / name / f"{number:03d}.jpg", quality=92)
    return root


if __name__ == "__main__":
    main()

"""How fast photographs in folders come from the second epoch on: this project beside `ImageFolder`.

`python -m benchmarks.input_folder --data-dir hymenoptera/train` prints the pictures per second of
training (a random part of random size, mirrored, normalised) and of validation, in turn. Without
`--data-dir` it draws photographs of 500 x 375 pixels.
"""

import argparse
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

from benchmarks.harness import in_turn, more, parser, rate, report
from lit_finetune.data_config import IMAGENET_MEAN, IMAGENET_STD
from lit_finetune.datamodules import ImageFolderDataModule


def main() -> None:
    """Measure training and validation, and report."""
    arguments = parser(__doc__, times=5)
    arguments.add_argument("--data-dir", help="with a folder a class")
    arguments.add_argument("--batch-size", type=int, default=32)
    arguments.add_argument("--workers", type=int, default=2, help="of all systems")
    options = arguments.parse_args()
    name, rows = f"ImageFolder, {options.workers} workers", []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(options.data_dir or draw(Path(folder, "photos")))
        for augmentation, title in (("auto", "training"), ("none", "validation")):
            start = time.perf_counter()
            ways = {
                "ours": partial(rate, ours(root, options, augmentation, Path(folder)), epochs=2),
                name: partial(rate, peer(root, options, title), epochs=2),
                "cache: none": partial(rate, ours(root, options, augmentation, None), epochs=2),
            }
            print(f"{title}: made ready in {time.perf_counter() - start:.1f} s", flush=True)
            figures = in_turn(ways, times=options.times)
            what = f"photographs a second, {title}, `cache: disk`"
            rows.append(more(what, figures, "ours", name, ">= 4"))
    report(rows, options.out)


def peer(root: Path, options: argparse.Namespace, title: str) -> Iterable[Any]:
    """Torchvision's dataset, transforms and torch's loader as every tutorial has them."""
    geometry: list[Any] = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()]
    if title == "validation":
        geometry = [transforms.Resize(256), transforms.CenterCrop(224)]
    finish = [transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    return DataLoader(
        datasets.ImageFolder(root, transforms.Compose([*geometry, *finish])),
        batch_size=options.batch_size,
        shuffle=title == "training",
        num_workers=options.workers,
        persistent_workers=options.workers > 0,
    )


def ours(
    root: Path, options: argparse.Namespace, augmentation: Any, cache_dir: Path | None
) -> Iterable[Any]:
    """The loader that a Trainer gets here; the cache, if there is one, is full."""
    data = ImageFolderDataModule(
        root,
        val_split=0.0,
        batch_size=options.batch_size,
        num_workers=options.workers,
        train_augmentation=augmentation,
        cache="none" if cache_dir is None else "disk",
        cache_dir=cache_dir,
    )
    data.setup("fit")
    return data.train_dataloader()


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

"""How fast CIFAR's training pictures come: this project beside torchvision's dataset with workers.

Whole epochs of pictures that are shifted, mirrored and normalised. They are noise in the original
files' format, so nothing is downloaded; `--data-dir` names a folder with the real ones.

    python -m benchmarks.input_cifar
"""

import hashlib
import logging
import pickle
import tempfile
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from benchmarks.harness import in_turn, parser, quicker, report
from lit_finetune.datamodules import CIFARDataModule

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def main() -> None:
    """Measure, and report."""
    arguments = parser(__doc__, times=5)
    arguments.add_argument("--data-dir", help="with the real `cifar-10-batches-py`")
    arguments.add_argument("--batch-size", type=int, default=128)
    arguments.add_argument("--workers", type=int, default=2, help="of the peer")
    given = arguments.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    name = f"torchvision with {given.workers} workers"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(given.data_dir or folder)
        if given.data_dir is None:
            write_noise(root)
        own = ours(root, batch_size=given.batch_size)
        theirs = peer(root, batch_size=given.batch_size, workers=given.workers)
        ways = {"CIFARDataModule": partial(epoch, own), name: partial(epoch, theirs)}
        figures = in_turn(ways, times=given.times)
    what = f"CIFAR-10 for training, batches of {given.batch_size}: seconds for 1,000 pictures"
    report([quicker(what, figures, "CIFARDataModule", name, ">= 8")], given.out)


def peer(root: Path, *, batch_size: int, workers: int) -> Iterable[Any]:
    """Torchvision's dataset, transforms and torch's loader as every tutorial has them."""
    transform = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    return DataLoader(
        datasets.CIFAR10(root, transform=transform),
        batch_size=batch_size,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def ours(root: Path, *, batch_size: int) -> Iterable[Any]:
    """The loader that a Trainer gets here."""
    data = CIFARDataModule(
        data_dir=root, batch_size=batch_size, image_size=32, mean=MEAN, std=STD, val_split=0.0
    )
    data.setup("fit")
    return data.train_dataloader()


def epoch(batches: Iterable[Any]) -> float:
    """Go through an epoch; the seconds for 1,000 of its pictures."""
    began = time.perf_counter()
    pictures = sum(len(labels) for _, labels in batches)
    return (time.perf_counter() - began) / pictures * 1000


def write_noise(root: Path) -> None:
    """50,000 and 10,000 pictures of noise in CIFAR-10's format, then taken for the real ones."""
    rng = np.random.default_rng(0)
    kind = datasets.CIFAR10
    folder = root / kind.base_folder
    folder.mkdir()

    def put(name: str, content: dict[str, Any]) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    def noise() -> dict[str, Any]:
        pixels = rng.integers(0, 256, (10_000, 3072), np.uint8)
        return {"data": pixels, "labels": rng.integers(0, 10, 10_000).tolist()}

    for files in (kind.train_list, kind.test_list):
        files[:] = [[name, put(name, noise())] for name, _ in files]
    names = {kind.meta["key"]: [f"class {i}" for i in range(10)]}
    kind.meta = {**kind.meta, "md5": put(kind.meta["filename"], names)}


if __name__ == "__main__":
    main()

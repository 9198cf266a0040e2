"""How fast CIFAR's training pictures come: this project beside torchvision's dataset with workers.

`python -m benchmarks.input_cifar` prints the pictures per second of whole epochs, shifted, mirrored
and normalised, in turn. The pictures are noise in the original files' format, so nothing is
downloaded; `--data-dir` names a folder with the real ones.
"""

import argparse
import hashlib
import pickle
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from benchmarks.rounds import in_turn, machine, table
from lit_finetune.datamodules import CIFARDataModule

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def main() -> None:
    """Measure, and print a table."""
    options = parse()
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        root = Path(options.data_dir or folder)
        if options.data_dir is None:
            write_noise(root)
        theirs = peer(root, batch_size=options.batch_size, workers=options.workers)
        own = ours(root, batch_size=options.batch_size)
        rates = in_turn(
            {
                f"torchvision, {options.workers} workers": lambda: count(theirs),
                "CIFARDataModule": lambda: count(own),
            },
            options.rounds,
        )
    print(f"batches of {options.batch_size}, {options.rounds} rounds of an epoch each\n")
    print(table(rates, ours="CIFARDataModule"))


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data-dir", help="with the real `cifar-10-batches-py`")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=2, help="of the peer")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


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


def count(batches: Iterable[Any]) -> int:
    """Go through an epoch."""
    return sum(len(labels) for _, labels in batches)


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

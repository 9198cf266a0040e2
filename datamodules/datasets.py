"""Pictures with labels and names, in files or in memory, and the dataset over them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from lit_finetune.images import load_image
from lit_finetune.seeding import drawing_from

from .order import Draw

UNLABELLED = -1


class Samples(Protocol):
    """Pictures that can be loaded one by one."""

    @property
    def names(self) -> Sequence[str]:
        """What each picture is called."""

    @property
    def labels(self) -> Sequence[int]:
        """The class index of each picture, or `UNLABELLED`."""

    def load(self, index: int) -> Image.Image:
        """One picture, in RGB."""


@dataclass(frozen=True, slots=True)
class FileSamples:
    """Pictures in files; a name is the path below `root`."""

    root: Path
    names: Sequence[str]
    labels: Sequence[int]

    def load(self, index: int) -> Image.Image:
        """One picture, in RGB."""
        try:
            return load_image(self.root / self.names[index])
        except OSError as error:
            raise OSError(
                f"{error}\nRepair or remove the file, or set `on_corrupt` to 'skip': then every "
                "picture is read once before the run, and those that cannot be are left out."
            ) from error


@dataclass(frozen=True, slots=True)
class ArraySamples:
    """Pictures in memory: 8 bits; sample, height, width, channel."""

    pictures: NDArray[np.uint8]
    names: Sequence[str]
    labels: Sequence[int]

    def load(self, index: int) -> Image.Image:
        """One picture, in RGB."""
        return Image.fromarray(self.pictures[index])

    def subset(self, indices: Sequence[int]) -> "ArraySamples":
        """Only these samples, in this order."""
        return ArraySamples(
            self.pictures[np.asarray(indices, dtype=int)],
            [self.names[i] for i in indices],
            [self.labels[i] for i in indices],
        )


class PictureDataset(Dataset[tuple[Tensor, int]]):
    """Transformed pictures with their labels.

    A `Draw` in the place of an index brings the seed from which its transform draws, whichever
    process loads it and whatever was drawn before.
    """

    def __init__(self, samples: Samples, transform: Callable[[Image.Image], Tensor]) -> None:
        self.samples = samples
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples.labels)

    def __getitem__(self, index: int | Draw) -> tuple[Tensor, int]:
        if isinstance(index, Draw):
            with drawing_from(index.seed):
                return self[index.picture]
        return self.transform(self.samples.load(index)), self.samples.labels[index]

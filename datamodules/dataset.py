"""Pictures with labels and names, in files or in memory, and the dataset over them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional

from lit_finetune.images.read import Box, load_part
from lit_finetune.loading.seeding import derive_seed, drawing_from

from .cached_images import CachedImages, CachedTensor, Pixels, as_tensor
from .samplers import Draw
from .sources.unreadable import stamp
from .transforms.pipeline import Pipeline, Shrink
from .transforms.random_numbers import uniforms

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
        return self.load_part(index)[0]

    def load_part(
        self, index: int, choose: Callable[[int, int], tuple[Box, float]] | None = None
    ) -> tuple[Image.Image, Box]:
        """One picture, and the wanted part of it; see `lit_finetune.images.read.load_part`."""
        try:
            return load_part(self.root / self.names[index], choose)
        except OSError as error:
            raise OSError(
                f"{error}\nRepair or remove the file, or set `on_corrupt` to 'skip': then every "
                "picture is read once before the run, and those that cannot be are left out."
            ) from error

    def stamp(self, index: int) -> list[int]:
        """What changes when the picture changes."""
        return stamp(self.root / self.names[index])

    def is_current(self, name: str, stamped: Sequence[int]) -> bool:
        """Whether there is a picture of this name, and it is what it was."""
        try:
            return stamp(self.root / name) == list(stamped)
        except OSError:
            return False


@dataclass(frozen=True, slots=True)
class ArraySamples:
    """Pictures in memory: 8 bits; sample, height, width, channel."""

    pictures: NDArray[np.uint8]
    names: Sequence[str]
    labels: Sequence[int]

    def load(self, index: int) -> Image.Image:
        """One picture, in RGB."""
        return Image.fromarray(self.pictures[index])

    def stamp(self, index: int) -> list[int]:
        """What changes when the picture changes."""
        pixels = np.ascontiguousarray(self.pictures[index])
        digest = blake2b(pixels.data, digest_size=8).digest()
        return [pixels.size, int.from_bytes(digest, "little", signed=True)]

    def is_current(self, name: str, stamped: Sequence[int]) -> bool:
        """Yes: which other pictures there are is not known here."""
        return True

    def subset(self, indices: Sequence[int]) -> "ArraySamples":
        """Only these samples, in this order."""
        return ArraySamples(
            self.pictures[np.asarray(indices, dtype=int)],
            [self.names[i] for i in indices],
            [self.labels[i] for i in indices],
        )


@dataclass(frozen=True, slots=True)
class Batch(Sequence[tuple[Tensor, int]]):
    """Pictures of a batch: together as they are before normalisation, or one by one as they end."""

    images: Tensor
    labels: Tensor
    finish: Callable[[Tensor], Tensor]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Any) -> Any:
        return self.finish(self.images[index, None])[0], int(self.labels[index])

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return iter(zip(self.finish(self.images), self.labels.tolist(), strict=True))


def unfinished(batch: Batch) -> tuple[Tensor, Tensor]:
    """A batch as it leaves a worker: 8 bits a channel are a quarter of what floats take."""
    return batch.images, batch.labels


class PictureDataset(Dataset[tuple[Tensor, int]]):
    """Transformed pictures with their labels.

    A `Draw` in the place of an index brings the seed from which its transform draws, whichever
    process loads it, in whichever batch, and whatever was drawn before.
    """

    def __init__(
        self,
        samples: Samples,
        pipeline: Pipeline,
        *,
        stock: CachedImages | CachedTensor | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.samples = samples
        self.pipeline = pipeline
        self.stock = stock
        self.device = device or torch.device("cpu")
        self._labels = torch.tensor(samples.labels)

    @property
    def varies(self) -> bool:
        """Whether a picture is another each time that its seed is."""
        return bool(self.pipeline.cut or self.pipeline.varied or self.pipeline.moves)

    @property
    def is_a_tensor(self) -> bool:
        """Whether batches are made from a single tensor, which takes no workers."""
        return isinstance(self.stock, CachedTensor) and self.pipeline.is_batched

    @property
    def is_ready(self) -> bool:
        """Whether so little is left to do that workers would take more from a network than give."""
        is_kept = isinstance(self.stock, CachedImages) and not self.pipeline.varied
        return self.is_a_tensor or (is_kept and self.device.type == "cpu")

    @property
    def is_on_device(self) -> bool:
        """Whether that tensor is where the network is."""
        return isinstance(self.stock, CachedTensor) and self.stock.pictures.is_cuda

    def __len__(self) -> int:
        return len(self.samples.labels)

    def __getitem__(self, index: int | Draw) -> tuple[Tensor, int]:
        return cast(tuple[Tensor, int], self.__getitems__([index])[0])

    def __getitems__(self, indices: Sequence[int | Draw]) -> Batch:
        """A whole batch: what torch's loaders ask for where there is this method."""
        pictures, seeds = split_draws(indices)
        draws = uniforms(seeds, pictures, self.pipeline.num_draws)
        images = self._gather(pictures, seeds, draws)
        used = self.pipeline.cut.num_draws if self.pipeline.cut else 0
        for move in self.pipeline.moves:
            images = move.move(images, draws[:, used : used + move.num_draws])
            used += move.num_draws
        return Batch(images, self._labels[torch.from_numpy(pictures)], self.pipeline.finish)

    def finish(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """A batch as the network expects it, on the device where it is wanted."""
        if self.device.type == "cuda":
            images = images.to(self.device, non_blocking=True)
            labels = labels.to(self.device, non_blocking=True)
        return self.pipeline.finish(images), labels

    def _gather(
        self, pictures: NDArray[np.int64], seeds: NDArray[np.int64], draws: NDArray[np.float64]
    ) -> Tensor:
        """The pictures of a batch, before what is done on the whole of it."""
        if self.is_a_tensor and isinstance(self.stock, CachedTensor):
            return self.stock.batch(torch.from_numpy(pictures))
        rows = zip(pictures.tolist(), seeds.tolist(), draws.tolist(), strict=True)
        images = [self._vary(*row) for row in rows]
        if len({image.dtype for image in images}) > 1:
            images = [functional.to_dtype(image, torch.float32, scale=True) for image in images]
        return torch.stack(images)

    def _vary(self, index: int, seed: int, draws: list[float]) -> Tensor:
        """One picture (C, H, W) after its own random steps."""
        cut, varied = self.pipeline.cut, self.pipeline.varied
        if cut is None:
            picture: Any = self._kept(index)
        else:
            pixels, box = self._part(index, draws[: cut.num_draws])
            picture = cut.cut(pixels, box)
        if not varied:
            return picture if isinstance(picture, Tensor) else as_tensor(picture)
        with drawing_from(derive_seed(seed, index)):
            picture = functional.to_pil_image(picture)
            for step in varied:
                picture = step(picture)
        return functional.to_image(picture).as_subclass(Tensor)

    def _kept(self, index: int) -> Pixels:
        """What the fixed steps give, from the cache or anew."""
        pixels = self.stock.get(index) if self.stock else None
        if pixels is None:
            pixels = make_ready(self.samples, self.pipeline, index)
            if isinstance(self.stock, CachedImages):
                self.stock.put_back(index, pixels)
        return pixels

    def _part(self, index: int, draws: list[float]) -> tuple[Pixels, Box]:
        """A picture, perhaps decoded smaller than it is, and the part of it that is to be cut."""
        cut = self.pipeline.cut
        assert cut is not None
        if self.pipeline.fixed or not isinstance(self.samples, FileSamples):
            pixels = self._kept(index)
            return pixels, cut.box(pixels.shape[0], pixels.shape[1], draws)

        def choose(height: int, width: int) -> tuple[Box, float]:
            box = cut.box(height, width, draws)
            return box, cut.excess(box)

        picture, box = self.samples.load_part(index, choose)
        return np.asarray(picture), box


def split_draws(
    indices: Sequence[int | Draw],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The pictures' numbers and their seeds; those without one share one that torch draws."""
    if isinstance(indices[0], Draw):
        pictures, seeds = np.array(indices, dtype=np.int64).T
        return np.ascontiguousarray(pictures), np.ascontiguousarray(seeds)
    numbers = np.array(indices, dtype=np.int64)
    return numbers, np.full(len(numbers), int(torch.randint(2**62, ())))


def make_ready(samples: Samples, pipeline: Pipeline, index: int) -> Pixels:
    """One picture (H, W, C) after the fixed steps, whether or not a cache then keeps it."""
    first = pipeline.fixed[0] if pipeline.fixed else None
    if isinstance(first, Shrink) and isinstance(samples, FileSamples):
        picture, _ = samples.load_part(index, first.whole)
    else:
        picture = samples.load(index)
    for step in pipeline.fixed:
        picture = step(picture)
    pixels = np.asarray(picture)
    return pixels[..., None] if pixels.ndim == 2 else pixels

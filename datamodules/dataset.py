"""Images with labels and names, in files or in memory, and the dataset of their transforms."""

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
from lit_finetune.loading.seeding import derive_seed, torch_seed

from .cached_images import CachedImages, CachedTensor, Pixels, as_tensor
from .samplers import EpochIndex
from .sources.unreadable import stamp
from .transforms.pipeline import Pipeline, Shrink
from .transforms.random_numbers import uniforms

UNLABELLED = -1


class Samples(Protocol):
    """Images that are loaded one by one."""

    @property
    def names(self) -> Sequence[str]:
        """The name of each image."""

    @property
    def labels(self) -> Sequence[int]:
        """The class index of each image, or `UNLABELLED`."""

    def load(self, index: int) -> Image.Image:
        """One image, in RGB."""


@dataclass(frozen=True, slots=True)
class FileSamples:
    """Images in files; a name is the path relative to `root`."""

    root: Path
    names: Sequence[str]
    labels: Sequence[int]

    def load(self, index: int) -> Image.Image:
        """One image, in RGB."""
        return self.load_part(index)[0]

    def load_part(
        self, index: int, choose: Callable[[int, int], tuple[Box, float]] | None = None
    ) -> tuple[Image.Image, Box]:
        """One image, and the requested part of it; see `lit_finetune.images.read.load_part`."""
        try:
            return load_part(self.root / self.names[index], choose)
        except OSError as error:
            raise OSError(
                f"{error}\nRepair or remove the file, or set `on_corrupt` to 'skip': then every "
                "picture is read once before the run, and unreadable ones are left out."
            ) from error

    def stamp(self, index: int) -> list[int]:
        """Numbers that change when the image changes."""
        return stamp(self.root / self.names[index])

    def is_current(self, name: str, stamped: Sequence[int]) -> bool:
        """Whether there is an image of this name, with this stamp."""
        try:
            return stamp(self.root / name) == list(stamped)
        except OSError:
            return False


@dataclass(frozen=True, slots=True)
class ArraySamples:
    """Images in memory (N, H, W, C), of 8 bits."""

    images: NDArray[np.uint8]
    names: Sequence[str]
    labels: Sequence[int]

    def load(self, index: int) -> Image.Image:
        """One image, in RGB."""
        return Image.fromarray(self.images[index])

    def stamp(self, index: int) -> list[int]:
        """Numbers that change when the image changes."""
        pixels = np.ascontiguousarray(self.images[index])
        digest = blake2b(pixels.data, digest_size=8).digest()
        return [pixels.size, int.from_bytes(digest, "little", signed=True)]

    def is_current(self, name: str, stamped: Sequence[int]) -> bool:
        """Always True: other images are not known here."""
        return True

    def subset(self, indices: Sequence[int]) -> "ArraySamples":
        """The samples with these indices, in this order."""
        return ArraySamples(
            self.images[np.asarray(indices, dtype=int)],
            [self.names[i] for i in indices],
            [self.labels[i] for i in indices],
        )


@dataclass(frozen=True, slots=True)
class Batch(Sequence[tuple[Tensor, int]]):
    """A batch before normalization; as a sequence, its normalized images with their labels."""

    images: Tensor
    labels: Tensor
    normalize: Callable[[Tensor], Tensor]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Any) -> Any:
        return self.normalize(self.images[index, None])[0], int(self.labels[index])

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return iter(zip(self.normalize(self.images), self.labels.tolist(), strict=True))


def collate_batch(batch: Batch) -> tuple[Tensor, Tensor]:
    """The tensors of a batch before normalization: 8 bits are a quarter of the size of floats."""
    return batch.images, batch.labels


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Transformed images with their labels.

    An index may be a `EpochIndex`: then the random transform depends only on its seed and index,
    whatever the process, the batch and the random numbers before.
    """

    def __init__(
        self,
        samples: Samples,
        pipeline: Pipeline,
        *,
        cache: CachedImages | CachedTensor | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.samples = samples
        self.pipeline = pipeline
        self.cache = cache
        self.device = device or torch.device("cpu")
        self._labels = torch.tensor(samples.labels)

    @property
    def varies(self) -> bool:
        """Whether the transform is random."""
        return bool(
            self.pipeline.crop or self.pipeline.random_steps or self.pipeline.batch_augmentations
        )

    @property
    def is_one_tensor(self) -> bool:
        """Whether batches are rows of one tensor, which needs no workers."""
        return isinstance(self.cache, CachedTensor) and self.pipeline.is_batched

    @property
    def needs_no_workers(self) -> bool:
        """Whether loading is so cheap that workers would slow the network down."""
        is_cached = isinstance(self.cache, CachedImages) and not self.pipeline.random_steps
        return self.is_one_tensor or (is_cached and self.device.type == "cpu")

    @property
    def is_on_device(self) -> bool:
        """Whether the cached tensor is on the GPU."""
        return isinstance(self.cache, CachedTensor) and self.cache.images.is_cuda

    def __len__(self) -> int:
        return len(self.samples.labels)

    def __getitem__(self, index: int | EpochIndex) -> tuple[Tensor, int]:
        return cast(tuple[Tensor, int], self.__getitems__([index])[0])

    def __getitems__(self, indices: Sequence[int | EpochIndex]) -> Batch:
        """A whole batch; torch's loaders call this method if it exists."""
        numbers, seeds = split_indices(indices)
        draws = uniforms(seeds, numbers, self.pipeline.num_draws)
        images = self._images(numbers, seeds, draws)
        used = self.pipeline.crop.num_draws if self.pipeline.crop else 0
        for step in self.pipeline.batch_augmentations:
            images = step.augment(images, draws[:, used : used + step.num_draws])
            used += step.num_draws
        return Batch(images, self._labels[torch.from_numpy(numbers)], self.pipeline.normalize)

    def finish(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The normalized images and the labels of a batch, on the GPU if the network is there."""
        if self.device.type == "cuda":
            images = images.to(self.device, non_blocking=True)
            labels = labels.to(self.device, non_blocking=True)
        return self.pipeline.normalize(images), labels

    def _images(
        self, numbers: NDArray[np.int64], seeds: NDArray[np.int64], draws: NDArray[np.float64]
    ) -> Tensor:
        """The images of a batch (N, C, H, W), before the batch augmentations."""
        if self.is_one_tensor and isinstance(self.cache, CachedTensor):
            return self.cache.batch(torch.from_numpy(numbers))
        rows = zip(numbers.tolist(), seeds.tolist(), draws.tolist(), strict=True)
        images = [self._image(*row) for row in rows]
        if len({image.dtype for image in images}) > 1:
            images = [functional.to_dtype(image, torch.float32, scale=True) for image in images]
        return torch.stack(images)

    def _image(self, index: int, seed: int, draws: list[float]) -> Tensor:
        """One image (C, H, W) after its crop and its random steps."""
        crop, random_steps = self.pipeline.crop, self.pipeline.random_steps
        if crop is None:
            image: Any = self._fixed(index)
        else:
            pixels, box = self._part(index, draws[: crop.num_draws])
            image = crop.crop(pixels, box)
        if not random_steps:
            return image if isinstance(image, Tensor) else as_tensor(image)
        with torch_seed(derive_seed(seed, index)):
            image = functional.to_pil_image(image)
            for step in random_steps:
                image = step(image)
        return functional.to_image(image).as_subclass(Tensor)

    def _fixed(self, index: int) -> Pixels:
        """The result of the fixed steps, cached or computed."""
        pixels = self.cache.get(index) if self.cache else None
        if pixels is None:
            pixels = prepare_image(self.samples, self.pipeline, index)
            if isinstance(self.cache, CachedImages):
                self.cache.repair(index, pixels)
        return pixels

    def _part(self, index: int, draws: list[float]) -> tuple[Pixels, Box]:
        """An image, perhaps decoded at a reduced size, and the part of it to crop."""
        crop = self.pipeline.crop
        assert crop is not None
        if self.pipeline.fixed_steps or not isinstance(self.samples, FileSamples):
            pixels = self._fixed(index)
            return pixels, crop.box(pixels.shape[0], pixels.shape[1], draws)

        def choose(height: int, width: int) -> tuple[Box, float]:
            box = crop.box(height, width, draws)
            return box, crop.max_reduction(box)

        image, box = self.samples.load_part(index, choose)
        return np.asarray(image), box


def split_indices(
    indices: Sequence[int | EpochIndex],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The indices and the seeds of a batch; plain indices share one random seed."""
    if isinstance(indices[0], EpochIndex):
        numbers, seeds = np.array(indices, dtype=np.int64).T
        return np.ascontiguousarray(numbers), np.ascontiguousarray(seeds)
    numbers = np.array(indices, dtype=np.int64)
    return numbers, np.full(len(numbers), int(torch.randint(2**62, ())))


def prepare_image(samples: Samples, pipeline: Pipeline, index: int) -> Pixels:
    """One image (H, W, C) after the fixed steps."""
    first = pipeline.fixed_steps[0] if pipeline.fixed_steps else None
    if isinstance(first, Shrink) and isinstance(samples, FileSamples):
        image, _ = samples.load_part(index, first.part_to_read)
    else:
        image = samples.load(index)
    for step in pipeline.fixed_steps:
        image = step(image)
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels

"""A transform as a pipeline: cached steps, random steps of images, random steps of batches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import CenterCrop, Grayscale, InterpolationMode, Resize, functional
from typing_extensions import override

from lit_finetune.images.data_config import DataConfig, Interpolation, ResizeToCover, normalize
from lit_finetune.images.read import Box

from .batch_augment import BatchAugmentation
from .random_crop import RandomResizedCrop

Step = Callable[[Any], Any]


class Shrink(nn.Module):
    """Reduce an image so that its short side has at most this length."""

    def __init__(self, short: int, *, interpolation: Interpolation) -> None:
        super().__init__()
        self.short = short
        self.interpolation = InterpolationMode(interpolation)

    @override
    def forward(self, image: Image.Image) -> Image.Image:
        if min(image.size) <= self.short:
            return image
        return functional.resize(image, [self.short], self.interpolation, antialias=True)

    def part_to_read(self, height: int, width: int) -> tuple[Box, float]:
        """The whole image, and the factor by which it may be reduced: to twice the final size."""
        return Box(0, 0, height, width), min(height, width) / self.short / 2

    @override
    def extra_repr(self) -> str:
        return f"short={self.short}, interpolation={self.interpolation.value}"


def is_deterministic(step: Step) -> bool:
    """Whether a step is deterministic, so that its result can be cached."""
    is_ours = type(step).__module__ == ResizeToCover.__module__  # that module has no random steps
    return is_ours or isinstance(step, Resize | CenterCrop | Grayscale | Shrink)


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The steps from an image to the network's input.

    The pixels are the same with and without a cache.
    """

    fixed_steps: tuple[nn.Module, ...]
    """The deterministic first steps, whose results can be cached."""
    crop: RandomResizedCrop | None
    """A random crop of single images, which may differ in size before it."""
    random_steps: tuple[Step, ...]
    """Random steps of single images."""
    batch_augmentations: tuple[BatchAugmentation, ...]
    """Random steps of whole batches."""
    normalize: Callable[[Tensor], Tensor]
    """From a batch of 8 bits, or of floats from 0 to 1, to normalized floats."""

    @property
    def is_batched(self) -> bool:
        """Whether all steps after the cached ones work on whole batches."""
        return bool(self.fixed_steps) and not (
            self.crop or self.random_steps or self.has_variable_size
        )

    @property
    def has_variable_size(self) -> bool:
        """Whether images differ in size after the fixed steps."""
        return not any(isinstance(step, CenterCrop) for step in self.fixed_steps)

    @property
    def num_draws(self) -> int:
        """The number of random numbers for the crop and the batch augmentations of an image."""
        return sum(step.num_draws for step in (self.crop, *self.batch_augmentations) if step)

    def with_shrink(self, short: int, config: DataConfig) -> "Pipeline":
        """The pipeline with reduced images in the cache, if it has no fixed steps."""
        if self.fixed_steps:
            return self
        return replace(self, fixed_steps=(Shrink(short, interpolation=config.interpolation),))


def make_pipeline(steps: Sequence[Step], config: DataConfig) -> Pipeline:
    """Make a pipeline of the steps before normalization."""
    normalize(config)  # raises an error for unsupported channels
    if len(config.mean) == 1 and all(map(is_deterministic, steps)):
        steps = [*steps, Grayscale()]  # rounds as `eval_transform` does
    fixed_steps = tuple(
        step for step in takewhile(is_deterministic, steps) if isinstance(step, nn.Module)
    )
    rest = steps[len(fixed_steps) :]
    crop = rest[0] if rest and isinstance(rest[0], RandomResizedCrop) else None
    rest = rest[1:] if crop else rest
    batch_augmentations = tuple(step for step in rest if isinstance(step, BatchAugmentation))
    # A step of single images lets all others work on single images as well, in their order.
    random_steps = () if len(batch_augmentations) == len(rest) else tuple(rest)
    return Pipeline(
        fixed_steps,
        crop,
        random_steps,
        () if random_steps else batch_augmentations,
        partial(normalize_batch, mean=config.mean, std=config.std),
    )


def normalize_batch(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images (N, C, H, W), of 8 bits or of floats from 0 to 1, as normalized floats."""
    if len(mean) == 1 and images.shape[-3] == 3:
        images = functional.rgb_to_grayscale(images)
    pixels = functional.to_dtype(images, torch.float32, scale=True)
    is_own = pixels is not images
    return functional.normalize(pixels, list(mean), list(std), inplace=is_own)

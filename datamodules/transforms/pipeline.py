"""The steps of a transform, sorted by how they are done best."""

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
    """Make the short side of a picture at most so long."""

    def __init__(self, short: int, *, interpolation: Interpolation) -> None:
        super().__init__()
        self.short = short
        self.interpolation = InterpolationMode(interpolation)

    @override
    def forward(self, picture: Image.Image) -> Image.Image:
        if min(picture.size) <= self.short:
            return picture
        return functional.resize(picture, [self.short], self.interpolation, antialias=True)

    def whole(self, height: int, width: int) -> tuple[Box, float]:
        """All of a picture, and how many times smaller it may be read: to twice what is kept."""
        return Box(0, 0, height, width), min(height, width) / self.short / 2

    @override
    def extra_repr(self) -> str:
        return f"short={self.short}, interpolation={self.interpolation.value}"


def is_fixed(step: Step) -> bool:
    """Whether a step gives the same each time, so that a cache may keep it."""
    is_ours = type(step).__module__ == ResizeToCover.__module__  # nothing is random there
    return is_ours or isinstance(step, Resize | CenterCrop | Grayscale | Shrink)


@dataclass(frozen=True, slots=True)
class Pipeline:
    """From a picture to what the network sees.

    The same steps give the same pixels whether a cache keeps what the fixed ones gave or not.
    """

    fixed: tuple[nn.Module, ...]
    """The steps that give the same each time, from a picture to one: what a cache keeps."""
    cut: RandomResizedCrop | None
    """A random part, one picture at a time, since those before it differ in size."""
    varied: tuple[Step, ...]
    """Random steps for one picture at a time."""
    moves: tuple[BatchAugmentation, ...]
    """Random steps for whole batches."""
    finish: Callable[[Tensor], Tensor]
    """From a batch as it comes to normalised floats."""

    @property
    def is_batched(self) -> bool:
        """Whether all that is left to do on what a cache keeps is done on whole batches."""
        return bool(self.fixed) and not (self.cut or self.varied or self.variable)

    @property
    def variable(self) -> bool:
        """Whether what a cache keeps has a size of its own for each picture."""
        return not any(isinstance(step, CenterCrop) for step in self.fixed)

    @property
    def num_draws(self) -> int:
        """How many random numbers a picture takes, but for those of varied steps."""
        return sum(step.num_draws for step in (self.cut, *self.moves) if step)

    def shrunk(self, short: int, config: DataConfig) -> "Pipeline":
        """The same, on pictures that are no larger than they need to be for keeping them."""
        if self.fixed:
            return self
        return replace(self, fixed=(Shrink(short, interpolation=config.interpolation),))


def make_pipeline(steps: Sequence[Step], config: DataConfig) -> Pipeline:
    """Sort the steps of a transform, which come before normalisation."""
    normalize(config)  # says which channels cannot be
    if len(config.mean) == 1 and all(map(is_fixed, steps)):
        steps = [*steps, Grayscale()]  # on the picture, which rounds as `eval_transform` does
    fixed = tuple(step for step in takewhile(is_fixed, steps) if isinstance(step, nn.Module))
    rest = steps[len(fixed) :]
    cut = rest[0] if rest and isinstance(rest[0], RandomResizedCrop) else None
    rest = rest[1:] if cut else rest
    moves = tuple(step for step in rest if isinstance(step, BatchAugmentation))
    varied = () if len(moves) == len(rest) else tuple(rest)
    finish = partial(normalize_batch, mean=config.mean, std=config.std)
    return Pipeline(fixed, cut, varied, () if varied else moves, finish)


def normalize_batch(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Pictures (N, C, H, W), of 8 bits or of floats from 0 to 1, as normalised floats."""
    if len(mean) == 1 and images.shape[-3] == 3:
        images = functional.rgb_to_grayscale(images)
    pixels = functional.to_dtype(images, torch.float32, scale=True)
    is_own = pixels is not images
    return functional.normalize(pixels, list(mean), list(std), inplace=is_own)

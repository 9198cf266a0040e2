"""The transforms of training images."""

from collections.abc import Callable
from typing import Any, Literal

from PIL import Image
from torch import nn
from torchvision.transforms import v2

from lit_finetune.images.data_config import DataConfig, eval_geometry, resize_and_crop

from .batch_augment import RandomAffine, RandomHorizontalFlip, RandomTranslate
from .pipeline import Step
from .random_crop import RandomResizedCrop

Augmentation = Literal["auto", "trivial", "rand", "none"] | Callable[[Image.Image], Any]


def train_steps(
    config: DataConfig, augmentation: Augmentation, geometry: list[nn.Module]
) -> list[Step]:
    """The steps of the transform of training images, without normalization.

    Args:
        config: The input that the network expects.
        augmentation: `auto` is `geometry` alone; `trivial` and `rand` add TrivialAugment (arXiv
            2103.10158) or RandAugment (arXiv 1909.13719); `none` is the transform of
            validation. The result of a callable is resized to the image size.
        geometry: The steps of `auto`, which end at the image size.
    """
    if augmentation == "none":
        return [*eval_geometry(config)]
    if callable(augmentation):
        return [augmentation, *resize_steps(config)]
    interpolation = v2.InterpolationMode(config.interpolation)
    if augmentation == "trivial":
        return [*geometry, v2.TrivialAugmentWide(interpolation=interpolation)]
    if augmentation == "rand":
        return [*geometry, v2.RandAugment(interpolation=interpolation)]
    return [*geometry]


def resize_steps(config: DataConfig) -> list[nn.Module]:
    """Resize an image to the image size, and crop it as the config allows."""
    return resize_and_crop(config, config.image_size)


def photo_geometry(config: DataConfig) -> list[nn.Module]:
    """For photographs: a random resized crop, and a horizontal flip."""
    return [
        RandomResizedCrop(config.image_size, interpolation=config.interpolation),
        RandomHorizontalFlip(),
    ]


def small_image_geometry(config: DataConfig) -> list[nn.Module]:
    """For images that their object fills: a shift by up to an eighth, and a horizontal flip."""
    height, width = config.image_size
    return [
        *resize_steps(config),
        RandomTranslate((height // 8, width // 8)),
        RandomHorizontalFlip(),
    ]


def digit_geometry(config: DataConfig) -> list[nn.Module]:
    """For characters: a small rotation, shift and zoom, and no flip."""
    return [*resize_steps(config), RandomAffine(10, translate=0.1, zoom=0.1)]

"""What happens to a picture before the network sees it in training."""

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
    """What happens to a training picture, step by step, but for normalisation.

    Args:
        config: What the network expects.
        augmentation: `auto` is `geometry` alone; `trivial` and `rand` add TrivialAugment (arXiv
            2103.10158) or RandAugment (arXiv 1909.13719); `none` is what validation does. A
            callable gives a picture, which is then brought to the image size.
        geometry: How `auto` crops and moves the picture; it ends at the image size.
    """
    if augmentation == "none":
        return [*eval_geometry(config)]
    if callable(augmentation):
        return [augmentation, *fit_whole(config)]
    interpolation = v2.InterpolationMode(config.interpolation)
    if augmentation == "trivial":
        return [*geometry, v2.TrivialAugmentWide(interpolation=interpolation)]
    if augmentation == "rand":
        return [*geometry, v2.RandAugment(interpolation=interpolation)]
    return [*geometry]


def fit_whole(config: DataConfig) -> list[nn.Module]:
    """Bring a picture to the image size, as much of it as the config lets in."""
    return resize_and_crop(config, config.image_size)


def photo_geometry(config: DataConfig) -> list[nn.Module]:
    """For photographs: a part of random size and proportions, and the mirror image."""
    return [
        RandomResizedCrop(config.image_size, interpolation=config.interpolation),
        RandomHorizontalFlip(),
    ]


def small_picture_geometry(config: DataConfig) -> list[nn.Module]:
    """For pictures that their object fills: a shift by up to an eighth, and the mirror image."""
    height, width = config.image_size
    return [*fit_whole(config), RandomTranslate((height // 8, width // 8)), RandomHorizontalFlip()]


def digit_geometry(config: DataConfig) -> list[nn.Module]:
    """For characters: a small turn, shift and zoom, and no mirror image."""
    return [*fit_whole(config), RandomAffine(10, translate=0.1, zoom=0.1)]

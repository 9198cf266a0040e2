"""What happens to a picture before the network sees it in training."""

from collections.abc import Callable
from typing import Any, Literal

from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from lit_finetune.data_config import DataConfig, eval_transform, frame, normalize

Augmentation = Literal["auto", "trivial", "rand", "none"] | Callable[[Image.Image], Any]
Transform = Callable[[Image.Image], Tensor]


def train_transform(
    config: DataConfig, augmentation: Augmentation, geometry: list[nn.Module]
) -> Transform:
    """The transform for training.

    Args:
        config: What the network expects.
        augmentation: `auto` is `geometry` alone; `trivial` and `rand` add TrivialAugment (arXiv
            2103.10158) or RandAugment (arXiv 1909.13719); `none` is what validation does. A
            callable gives a picture, which is then brought to the image size.
        geometry: How `auto` crops and moves the picture; it ends at the image size.
    """
    if augmentation == "none":
        return eval_transform(config)
    interpolation = v2.InterpolationMode(config.interpolation)
    if augmentation == "trivial":
        geometry = [*geometry, v2.TrivialAugmentWide(interpolation=interpolation)]
    elif augmentation == "rand":
        geometry = [*geometry, v2.RandAugment(interpolation=interpolation)]
    elif callable(augmentation):
        return v2.Compose([augmentation, *fit_whole(config), normalize(config)])
    return v2.Compose([*geometry, normalize(config)])


def fit_whole(config: DataConfig) -> list[nn.Module]:
    """Bring a picture to the image size, as much of it as the config lets in."""
    return frame(config, config.image_size)


def photo_geometry(config: DataConfig) -> list[nn.Module]:
    """For photographs: a part of random size and proportions, and the mirror image."""
    interpolation = v2.InterpolationMode(config.interpolation)
    crop = v2.RandomResizedCrop(config.image_size, interpolation=interpolation, antialias=True)
    return [crop, v2.RandomHorizontalFlip()]


def small_picture_geometry(config: DataConfig) -> list[nn.Module]:
    """For pictures that their object fills: a shift by up to an eighth, and the mirror image."""
    padding = [size // 8 for size in (config.image_size[1], config.image_size[0])]
    crop = v2.RandomCrop(config.image_size, padding=padding)
    return [*fit_whole(config), crop, v2.RandomHorizontalFlip()]


def digit_geometry(config: DataConfig) -> list[nn.Module]:
    """For characters: a small turn, shift and zoom, and no mirror image."""
    move = v2.RandomAffine(
        degrees=10,
        translate=(0.1, 0.1),
        scale=(0.9, 1.1),
        interpolation=v2.InterpolationMode.BILINEAR,
    )
    return [*fit_whole(config), move]

"""The images that a network expects, as plain data, and the transforms that make them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import cycle, islice
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from lit_finetune._errors import nearest, one_of
from lit_finetune.checkpoints.build_limits import MAX_IMAGE_SIDE

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Interpolation = Literal["nearest", "bilinear", "bicubic"]
_LARGEST = {"mean": 1.0, "std": 2.0}
"""The limits of plausible values, for pixels from 0 to 1."""
CropMode = Literal["center", "squash", "border", "pad"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """The images that a network expects."""

    mean: tuple[float, ...] = IMAGENET_MEAN
    """Mean of each channel, for pixels from 0 to 1."""
    std: tuple[float, ...] = IMAGENET_STD
    """Standard deviation of each channel, for pixels from 0 to 1."""
    image_size: tuple[int, int] = (224, 224)
    """Height and width of the network's input."""
    resize_size: int = 256
    """Length of the image's short side before `image_size` is cropped from its centre."""
    interpolation: Interpolation = "bilinear"
    """The interpolation of resizing."""
    crop_mode: CropMode = "center"
    """`center`: keep the aspect ratio, and crop; `squash`: change the aspect ratio; `border`: keep
    the aspect ratio and the whole image, with a border of the colour `mean`; `pad`: like `center`,
    but a `resize_size` below `image_size` leaves a black border."""

    def __post_init__(self) -> None:
        problems = []
        if len(self.mean) != len(self.std):
            problems.append(f"`mean` has {len(self.mean)} channels, `std` has {len(self.std)}")
        problems += statistics_problems(self.mean, self.std)
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            problems.append(f"`image_size` is (height, width), but got {self.image_size}")
        elif self.resize_size < min(self.image_size) and self.crop_mode != "pad":
            problems.append(
                f"`resize_size` {self.resize_size} is smaller than the short side of "
                f"`image_size` {self.image_size}"
            )
        if problems:
            raise ValueError(f"This data config cannot be: {'; '.join(problems)}.")
        one_of(self.interpolation, ("nearest", "bilinear", "bicubic"), "interpolation")
        one_of(self.crop_mode, ("center", "squash", "border", "pad"), "crop_mode")

    def to_dict(self) -> dict[str, Any]:
        """The config as lists, strings and numbers, for a checkpoint."""
        data = asdict(self)
        return {key: list(v) if isinstance(v, tuple) else v for key, v in data.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "DataConfig":
        """The config from the data of `to_dict`.

        >>> DataConfig.from_dict({"image_size": [32, 32], "resize_size": 32}).image_size
        (32, 32)
        """
        names = [field.name for field in fields(cls)]
        for key in data:
            if key not in names:
                hint = nearest(key, names)
                raise ValueError(f"A data config has no {key!r}.{hint} It has: {', '.join(names)}.")
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in data.items()
        }
        return cls(**values)

    @classmethod
    def from_checkpoint(cls, data: Any) -> "DataConfig":
        """The config from the data of an untrusted checkpoint.

        Raises:
            ValueError: The data is no data config.
        """
        try:
            config = cls.from_dict(data)
            sides = (*config.image_size, config.resize_size)
            if not all(type(side) is int and side <= MAX_IMAGE_SIDE for side in sides):
                raise ValueError(f"pictures of {config.image_size}, from {config.resize_size} on.")
            return config
        except (TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"The checkpoint's data config cannot be: {error}") from error

    def differences(self, other: "DataConfig") -> str:
        """The differences from another config, as the end of a sentence.

        >>> DataConfig(resize_size=300).differences(DataConfig())
        '`resize_size` 300 and not 256'
        """
        ours, theirs = asdict(self), asdict(other)
        return ", ".join(
            f"`{key}` {value} and not {theirs[key]}"
            for key, value in ours.items()
            if value != theirs[key]
        )

    def resized(self, image_size: int | tuple[int, int]) -> "DataConfig":
        """The same config for another image size; it crops the same fraction of the image.

        >>> DataConfig().resized(112).resize_size
        128
        """
        size = (image_size, image_size) if isinstance(image_size, int) else image_size
        resize_size = round(self.resize_size * min(size) / min(self.image_size))
        return replace(self, image_size=size, resize_size=resize_size)

    def with_channels(self, num_channels: int) -> "DataConfig":
        """The same config for another number of channels: one averages them, more repeat them.

        >>> DataConfig(mean=(0.2, 0.4, 0.6), std=(1.0, 1.0, 1.0)).with_channels(4).mean
        (0.2, 0.4, 0.6, 0.2)
        """
        if num_channels == len(self.mean):
            return self
        if num_channels == 1:
            average = (sum(self.mean) / len(self.mean),), (sum(self.std) / len(self.std),)
            return replace(self, mean=average[0], std=average[1])
        mean, std = (tuple(islice(cycle(values), num_channels)) for values in (self.mean, self.std))
        return replace(self, mean=mean, std=std)


def statistics_problems(mean: Sequence[float] = (), std: Sequence[float] = ()) -> list[str]:
    """The problems of a mean and standard deviation of pixels from 0 to 1.

    >>> statistics_problems((0.5,), (0.0,)), statistics_problems(mean=(127.5,))
    (['`std` must be above 0, but got (0.0,)'], ['`mean` (127.5,) is ... divided by 255, (0.5,)'])
    """
    problems = []
    for name, values in (("mean", mean), ("std", std)):
        shown = tuple(values)
        are_numbers = all(isinstance(each, int | float) for each in values)
        if not are_numbers or not all(map(math.isfinite, values)):
            problems.append(f"`{name}` must be finite numbers, but got {shown}")
        elif name == "std" and min(values, default=1) <= 0:
            problems.append(f"`std` must be above 0, but got {shown}")
        elif max(values, default=0) > _LARGEST[name]:
            of_one = tuple(round(each / 255, 4) for each in values)
            problems.append(
                f"`{name}` {shown} is of no pixels from 0 to 1: of those from 0 to 255, give it"
                f" divided by 255, {of_one}"
            )
        elif min(values, default=0) < -1:
            problems.append(f"`mean` is of pixels from 0 to 1, but got {shown}")
    return problems


_MAX_ASPECT = 128
"""How many times longer than needed a resized image may be: the rest is cut off before."""


class ResizeToCover(nn.Module):
    """Resize an image to cover a height and a width, keeping its aspect ratio.

    Of an image that is extremely long only the middle is resized.
    """

    def __init__(self, size: tuple[int, int], *, interpolation: Interpolation) -> None:
        super().__init__()
        self.size = size
        self.interpolation = v2.InterpolationMode(interpolation)

    def forward(self, picture: Image.Image | Tensor) -> Image.Image | Tensor:
        """Resize one image."""
        height, width = functional.get_size(picture)
        scale = max(self.size[0] / height, self.size[1] / width)
        limits = [max(1, int(_MAX_ASPECT * side / scale)) for side in self.size]
        if height > limits[0] or width > limits[1]:  # a file of 100 bytes may hold 60000 x 1 pixels
            height, width = min(height, limits[0]), min(width, limits[1])
            picture = functional.center_crop(picture, [height, width])
        # torchvision truncates the long side with int(); rounding must not leave a gap.
        new_size = [max(self.size[0], int(height * scale)), max(self.size[1], int(width * scale))]
        return functional.resize(picture, new_size, self.interpolation, antialias=True)

    def extra_repr(self) -> str:
        """The size and interpolation, for `print`."""
        return f"size={self.size}, interpolation={self.interpolation.value}"


class ResizeWithin(nn.Module):
    """Resize an image to fit into a height and a width, keeping its aspect ratio."""

    def __init__(self, size: tuple[int, int], *, interpolation: Interpolation) -> None:
        super().__init__()
        self.size = size
        self.interpolation = v2.InterpolationMode(interpolation)

    def forward(self, picture: Image.Image | Tensor) -> Image.Image | Tensor:
        """Resize one image."""
        height, width = functional.get_size(picture)
        ratio = max(height / self.size[0], width / self.size[1])
        new_size = [max(1, round(height / ratio)), max(1, round(width / ratio))]
        return functional.resize(picture, new_size, self.interpolation, antialias=True)


class PadAround(nn.Module):
    """Pad an image that is smaller than a height or a width with a border of one colour."""

    def __init__(self, size: tuple[int, int], *, colour: tuple[float, ...]) -> None:
        super().__init__()
        self.size = size
        self.colour = colour

    def forward(self, picture: Image.Image | Tensor) -> Image.Image | Tensor:
        """Pad one image; colours range to 255, or to 1 for floating-point tensors."""
        height, width = functional.get_size(picture)
        rows, columns = max(0, self.size[0] - height), max(0, self.size[1] - width)
        padding = [columns // 2, rows // 2, (columns + 1) // 2, (rows + 1) // 2]
        fill: list[float] = [round(255 * value) for value in self.colour]
        if isinstance(picture, Tensor) and picture.is_floating_point():
            fill = [*self.colour]
        return functional.pad(picture, padding, fill=fill)


def eval_transform(config: DataConfig) -> Callable[[Image.Image | Tensor], Tensor]:
    """The transform for evaluation: resize, centre crop, normalise."""
    return v2.Compose([*eval_geometry(config), normalize(config)])


def eval_geometry(config: DataConfig) -> list[nn.Module]:
    """Its first part, which leaves 8 bits per channel: resize, centre crop."""
    ratio = config.resize_size / min(config.image_size)
    size = (round(config.image_size[0] * ratio), round(config.image_size[1] * ratio))
    return resize_and_crop(config, size)


def resize_and_crop(config: DataConfig, size: tuple[int, int]) -> list[nn.Module]:
    """Resize an image to a size by the config's `crop_mode`, and crop it to `image_size`."""
    crop = v2.CenterCrop(config.image_size)
    if config.crop_mode == "squash":
        interpolation = v2.InterpolationMode(config.interpolation)
        return [v2.Resize(size, interpolation=interpolation, antialias=True), crop]
    if config.crop_mode == "border":
        resize = ResizeWithin(size, interpolation=config.interpolation)
        return [resize, PadAround(config.image_size, colour=config.mean), crop]
    return [ResizeToCover(size, interpolation=config.interpolation), crop]


def normalize(config: DataConfig) -> Callable[[Image.Image | Tensor], Tensor]:
    """The last part of every transform: from an image to a normalised float tensor.

    Raises:
        ValueError: The network's number of channels is not that of images.
    """
    channels = len(config.mean)
    if channels not in (1, 3):
        raise ValueError(
            f"The network takes {channels} channels, but pictures have 3, or 1 where they are made "
            "grey. Train on a `DataLoader` of your own tensors, (N, channels, height, width)."
        )
    return v2.Compose(
        [
            *([v2.Grayscale()] if channels == 1 else []),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean=list(config.mean), std=list(config.std)),
            v2.ToPureTensor(),
        ]
    )

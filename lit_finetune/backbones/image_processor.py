"""Convert the image processor of a Hugging Face network to a data config."""

from collections.abc import Mapping
from typing import Any

from lit_finetune.checkpoints.build_limits import MAX_IMAGE_SIDE
from lit_finetune.images.data_config import IMAGENET_MEAN, IMAGENET_STD, DataConfig, Interpolation

_PILLOW_FILTERS: Mapping[int, Interpolation] = {0: "nearest", 2: "bilinear", 3: "bicubic"}
"""Pillow's filters by their numbers; the other filters are closest to bicubic."""
_SHORT_SIDE_PROCESSORS = (
    *("Bit", "CLIP", "ChineseCLIP", "Levit", "LeViT"),
    *("MobileNetV1", "MobileNetV2", "MobileViT", "TextNet"),
)
"""The processors whose `size`, as a number, is the short side; for others it is a square."""


def processor_data_config(processor: Mapping[str, Any]) -> DataConfig:
    """The data config of a `preprocessor_config.json`.

    >>> config = processor_data_config({"size": {"shortest_edge": 256}, "do_center_crop": True,
    ...                                 "crop_size": 224, "resample": 3})
    >>> config.image_size, config.resize_size, config.interpolation
    ((224, 224), 256, 'bicubic')

    Raises:
        ValueError: The network takes images that a data config cannot describe, such as BGR.
    """
    if processor.get("do_flip_channel_order"):
        raise ValueError(
            "The image processor turns pictures from RGB to BGR, which a data config cannot"
            " describe. Reverse the input channels of the first convolution's weights instead, and"
            " leave `do_flip_channel_order` out of `preprocessor_config.json`."
        )
    mean, std = _normalisation(processor)
    image_size, resize_size = _sizes(processor)
    sides = (*image_size, resize_size)
    if not all(type(side) is int and 0 < side <= MAX_IMAGE_SIDE for side in sides):
        raise ValueError(f"it asks for pictures of {image_size}, from {resize_size} on.")
    return DataConfig(
        mean=mean,
        std=std,
        image_size=image_size,
        resize_size=max(resize_size, min(image_size)),
        interpolation=_PILLOW_FILTERS.get(int(processor.get("resample", 2)), "bicubic"),
        crop_mode="squash" if _squashes(processor) else "center",
    )


def _normalisation(processor: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and std, of pixels from 0 to 1, that are equivalent to the processor's steps."""
    mean = tuple(processor.get("image_mean") or IMAGENET_MEAN)
    std = tuple(processor.get("image_std") or IMAGENET_STD)
    if not processor.get("do_normalize", True):
        mean, std = (0.0,) * len(mean), (1.0,) * len(std)
    # The processor gets pixels from 0 to 255, and may keep that range, or rescale to -1 to 1.
    rescales = processor.get("do_rescale", True)
    scale = 255 * processor.get("rescale_factor", 1 / 255) if rescales else 255.0
    offset = 1.0 if processor.get("rescale_offset") else 0.0
    # EfficientNet's divides by std a second time, as in the TensorFlow original.
    divides_twice = processor.get(
        "include_top", _processor_type(processor).startswith("EfficientNet")
    )
    second_std = std if divides_twice else (1.0,) * len(std)
    return (
        tuple((value + offset) / scale for value in mean),
        tuple(a * b / scale for a, b in zip(std, second_std, strict=True)),
    )


def _sizes(processor: Mapping[str, Any]) -> tuple[tuple[int, int], int]:
    """Height and width of the network's input, and the image's short side before cropping."""
    size = _height_and_width(processor.get("size", 224))
    crop_size, short_side = size, min(size)
    if _processor_type(processor).startswith("Levit"):
        short_side = int(256 / 224 * short_side)
    elif processor.get("crop_pct") and (processor.get("do_center_crop") or short_side < 384):
        short_side = int(
            short_side / processor["crop_pct"]
        )  # from 384 on, ConvNeXt's does not crop
    if processor.get("do_center_crop") and processor.get("crop_size") is not None:
        crop_size = _height_and_width(processor["crop_size"])
    return crop_size, short_side if processor.get("do_resize", True) else min(crop_size)


def _squashes(processor: Mapping[str, Any]) -> bool:
    """Whether the processor resizes images without keeping their aspect ratio.

    >>> [_squashes({"size": size}) for size in ({"shortest_edge": 224}, {"height": 9, "width": 9})]
    [False, True]
    """
    size = processor.get("size", 224)
    if not processor.get("do_resize", True):
        return False
    if processor.get("crop_pct"):  # ConvNeXt's, which crops below 384, and PoolFormer's
        return not processor.get("do_center_crop") and min(_height_and_width(size)) >= 384
    if isinstance(size, int):
        return not _processor_type(processor).startswith(_SHORT_SIDE_PROCESSORS)
    return not isinstance(size, Mapping) or "height" in size


def _processor_type(processor: Mapping[str, Any]) -> str:
    return str(processor.get("image_processor_type") or processor.get("feature_extractor_type"))


def _height_and_width(size: Any) -> tuple[int, int]:
    """A processor's size: a number, a list, `{height, width}` or `{shortest_edge}`.

    >>> _height_and_width(224), _height_and_width({"shortest_edge": 256})
    ((224, 224), (256, 256))
    """
    if isinstance(size, Mapping):
        side = size.get("shortest_edge", 224)
        return size.get("height", side), size.get("width", side)
    if isinstance(size, int):
        return size, size
    if not isinstance(size, list | tuple) or len(size) != 2:
        raise ValueError(f"a size is a number, two, or named ones, but it says {size!r}.")
    height, width = size
    return height, width

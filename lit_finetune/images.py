"""Reading a picture from a file, whatever its format, as the network is to see it."""

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


class Box(NamedTuple):
    """A part of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int


def load_image(path: str | Path) -> Image.Image:
    """The picture in a file, upright and in RGB.

    Raises:
        OSError: the file is missing, or is no picture that can be read; the message names it.
    """
    return load_part(path)[0]


def load_part(
    path: str | Path | BinaryIO,
    choose: Callable[[int, int], tuple[Box, float]] | None = None,
    *,
    name: str | None = None,
) -> tuple[Image.Image, Box]:
    """The picture in a file, upright and in RGB, and where in it the part is that is wanted.

    Args:
        path: The file, or one that is open.
        choose: From the picture's height and width to the part that is wanted, and how many times
            smaller it may be. A JPEG is then decoded at a half, a quarter or an eighth, which takes
            a fraction of the time. By default the whole picture as it is.
        name: What an open file is called in an error.

    Raises:
        OSError: the file is missing, or is no picture that can be read; the message names it.
    """
    try:
        with Image.open(path) as image:
            if choose is None:
                picture = to_rgb(ImageOps.exif_transpose(image))
                return picture, Box(0, 0, picture.height, picture.width)
            width, height = upright_size(image)
            box, smaller = choose(height, width)
            if image.format == "JPEG" and smaller >= 2:
                factor = 2 ** min(3, int(smaller).bit_length() - 1)
                image.draft(None, (image.width // factor, image.height // factor))
            picture = to_rgb(ImageOps.exif_transpose(image))
            return picture, scaled(box, picture.height / height, picture.width / width)
    except FileNotFoundError:
        raise
    except Exception as error:  # a broken file ends in almost any kind of error inside Pillow
        raise OSError(f"'{name or path}' cannot be read as a picture: {error}") from error


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height once a picture is turned as its camera was held; only its start is read."""
    turned_by_a_quarter = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    return image.size[::-1] if turned_by_a_quarter else image.size


def scaled(box: Box, down: float, right: float) -> Box:
    """The same part of the same picture at another size.

    >>> scaled(Box(0, 10, 20, 20), 0.5, 0.5)
    Box(top=0, left=5, height=10, width=10)
    """
    top, bottom = (round(edge * down) for edge in (box.top, box.top + box.height))
    left, far = (round(edge * right) for edge in (box.left, box.left + box.width))
    return Box(top, left, max(1, bottom - top), max(1, far - left))


def as_rgb(image: str | Path | Image.Image) -> Image.Image:
    """A picture, or that of a file, in RGB."""
    return to_rgb(image) if isinstance(image, Image.Image) else load_image(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture of any mode in RGB, with 8 bits a channel.

    >>> to_rgb(Image.new("I;16", (1, 1), 65535)).getpixel((0, 0))
    (255, 255, 255)
    """
    if image.mode == "F":
        raise ValueError("its pixels are floats of unknown range; store it with 8 or 16 bits")
    if image.mode.startswith("I"):  # Pillow itself would clip 16 bits to 255: a white picture
        sixteen = np.asarray(image).clip(0, 65535).astype(np.uint16)
        image = Image.fromarray((sixteen >> 8).astype(np.uint8))
    if (
        image.mode == "P"
    ):  # a palette may hold transparency, which only RGBA takes without a warning
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")

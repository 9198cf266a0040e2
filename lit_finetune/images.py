"""Reading a picture from a file, whatever its format, as the network is to see it."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


def load_image(path: str | Path) -> Image.Image:
    """The picture in a file, upright and in RGB.

    Raises:
        OSError: the file is missing, or is no picture that can be read; the message names it.
    """
    try:
        with Image.open(path) as image:
            return to_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise
    except Exception as error:  # a broken file ends in almost any kind of error inside Pillow
        raise OSError(f"'{path}' cannot be read as a picture: {error}") from error


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

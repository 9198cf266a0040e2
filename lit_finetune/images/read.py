"""Read an image from a file of any format, upright and in RGB."""

import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from PIL import ExifTags, Image, ImageFile

from lit_finetune.images.bit_depth import declared_bits, to_8_bits

UNSUPPORTED_FORMATS = ("EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG")
"""Formats that Pillow renders by an external program or by Windows, or cannot decode."""

_ORIENTATION_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transpose that brings each EXIF orientation upright."""


class Box(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def load_image(path: str | Path) -> Image.Image:
    """The image in a file, upright and in RGB.

    Raises:
        OSError: The file is missing or cannot be read as an image; the message names it.
    """
    return load_part(path)[0]


def load_part(
    path: str | Path | BinaryIO,
    choose: Callable[[int, int], tuple[Box, float]] | None = None,
    *,
    name: str | None = None,
) -> tuple[Image.Image, Box]:
    """The image in a file, upright and in RGB, and the box of the requested part in it.

    Args:
        path: The file's path, or an open file.
        choose: Takes the image's height and width; returns the box of the requested part, and the
            factor by which it may be reduced. A JPEG is then decoded at a half, a quarter or an
            eighth of its size, which is much faster. By default the whole image at its full size.
        name: The name of an open file in errors.

    Raises:
        OSError: The file is missing or cannot be read as an image; the message names it.
    """
    try:
        with open_image(path) as image:
            bits = declared_bits(image)
            drafted = None
            if choose is not None and image.format == "JPEG":
                drafted = draft(image, choose)
            picture = to_rgb(apply_exif_orientation(image), bits)
            if drafted is not None:
                box, height, width = drafted
                return picture, scale_box(box, picture.height / height, picture.width / width)
            if choose is not None:
                return picture, choose(picture.height, picture.width)[0]
            return picture, Box(0, 0, picture.height, picture.width)
    except FileNotFoundError:
        raise
    except Exception as error:  # broken files raise almost any error in Pillow
        raise OSError(f"'{name or path}' cannot be read as a picture: {error}") from error


def open_image(path: str | Path | BinaryIO, *, formats: Sequence[str] | None = None) -> Image.Image:
    """Open an image without decoding it, in one of these formats; by default, in any supported."""
    Image.init()
    allowed = Image.ID if formats is None else [name for name in formats if name in Image.OPEN]
    return Image.open(path, formats=[name for name in allowed if name not in UNSUPPORTED_FORMATS])


def draft(
    image: Image.Image, choose: Callable[[int, int], tuple[Box, float]]
) -> tuple[Box, int, int]:
    """Set a JPEG to be decoded at a reduced size; return the box, and its full height and width."""
    width, height = image.size
    if exif_orientation(image) in (5, 6, 7, 8):  # a quarter turn
        width, height = height, width
    box, max_reduction = choose(height, width)
    if max_reduction >= 2:
        factor = 2 ** min(3, int(max_reduction).bit_length() - 1)
        image.draft(None, (image.width // factor, image.height // factor))
    return box, height, width


def apply_exif_orientation(image: Image.Image) -> Image.Image:
    """Decode an image and transpose it upright, as Pillow's `exif_transpose`, without writing EXIF.

    `exif_transpose` writes all EXIF tags again, which fails if one of them is damaged.
    """
    load_pixels(image)
    turn = _ORIENTATION_TRANSPOSES.get(exif_orientation(image) or 1)
    return image if turn is None else image.transpose(turn)


def load_pixels(image: Image.Image) -> None:
    """Decode an image.

    Pillow memory-maps an uncompressed TIFF that was opened by its name, with the width of the
    upright image: one with a quarter turn is sheared. Without the name, Pillow reads it.
    """
    if image.format != "TIFF" or not isinstance(image, ImageFile.ImageFile):
        image.load()
        return
    name, image.filename = image.filename, ""
    try:
        image.load()
    finally:
        image.filename = name


def exif_orientation(image: Image.Image) -> int | None:
    """The EXIF orientation of an image, from 1 to 8; None if it has none."""
    try:
        orientation: int | None = image.getexif().get(ExifTags.Base.Orientation)
    except (SyntaxError, struct.error):  # invalid EXIF: Pillow itself ignores it in a JPEG
        return None
    return orientation


def scale_box(box: Box, scale_y: float, scale_x: float) -> Box:
    """A box in an image that is scaled by these factors.

    >>> scale_box(Box(0, 10, 20, 20), 0.5, 0.5)
    Box(top=0, left=5, height=10, width=10)
    """
    top, bottom = (round(side * scale_y) for side in (box.top, box.top + box.height))
    left, right = (round(side * scale_x) for side in (box.left, box.left + box.width))
    return Box(top, left, max(1, bottom - top), max(1, right - left))


def as_rgb(image: str | Path | Image.Image) -> Image.Image:
    """An image, or the image in a file, upright and in RGB.

    Raises:
        TypeError: `image` is neither a path nor a Pillow image.
        ValueError: The range of its pixels is unknown.
    """
    if isinstance(image, str | Path):
        return load_image(image)
    if not isinstance(image, Image.Image):
        raise TypeError(
            f"`image` must be a path or a Pillow image, but is a {type(image).__name__}: "
            "convert an array with PIL.Image.fromarray, a tensor with torchvision's `to_pil_image`."
        )
    bits = declared_bits(image)
    return to_rgb(apply_exif_orientation(image), bits)


def to_rgb(image: Image.Image, bits: int | None = None) -> Image.Image:
    """An image of any mode as RGB with 8 bits per channel; transparency is dropped, as in Pillow.

    >>> to_rgb(Image.new("I;16", (1, 1), 65535)).getpixel((0, 0))
    (255, 255, 255)

    Args:
        image: The image.
        bits: Its bits per channel, if they were read before it was decoded.

    Raises:
        ValueError: The range of its pixels is unknown.
    """
    image = to_8_bits(image, declared_bits(image) if bits is None else bits)
    if image.mode == "P":  # with transparency, Pillow warns unless converted to RGBA
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")

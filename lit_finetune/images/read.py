"""Reading a picture from a file, whatever its format, as the network is to see it."""

import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from PIL import ExifTags, Image, ImageFile

from lit_finetune.images.bit_depth import declared_bits, eight_bits

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".webp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".avif", ".jp2", ".j2k", ".qoi"),
)


UNREAD_FORMATS = ("EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG")
"""What Pillow draws by another program, by Windows, or not at all: no data, or no picture."""

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How the pixels of each EXIF orientation are turned upright."""


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
        with open_image(path) as image:
            bits = declared_bits(image)
            drafted = None
            if choose is not None and image.format == "JPEG":
                drafted = draft(image, choose)
            picture = to_rgb(upright(image), bits)
            if drafted is not None:
                box, height, width = drafted
                return picture, scaled(box, picture.height / height, picture.width / width)
            if choose is not None:
                return picture, choose(picture.height, picture.width)[0]
            return picture, Box(0, 0, picture.height, picture.width)
    except FileNotFoundError:
        raise
    except Exception as error:  # a broken file ends in almost any kind of error inside Pillow
        raise OSError(f"'{name or path}' cannot be read as a picture: {error}") from error


def open_image(path: str | Path | BinaryIO, *, formats: Sequence[str] | None = None) -> Image.Image:
    """The start of a picture, in one of these formats or in any that Pillow decodes by itself."""
    Image.init()
    wanted = Image.ID if formats is None else [name for name in formats if name in Image.OPEN]
    return Image.open(path, formats=[name for name in wanted if name not in UNREAD_FORMATS])


def draft(
    image: Image.Image, choose: Callable[[int, int], tuple[Box, float]]
) -> tuple[Box, int, int]:
    """Have a JPEG decoded no larger than need be; its part, and its height and width as it is."""
    width, height = image.size
    if orientation_of(image) in (5, 6, 7, 8):  # a quarter turn
        width, height = height, width
    box, smaller = choose(height, width)
    if smaller >= 2:
        factor = 2 ** min(3, int(smaller).bit_length() - 1)
        image.draft(None, (image.width // factor, image.height // factor))
    return box, height, width


def upright(image: Image.Image) -> Image.Image:
    """A picture as its camera was held: Pillow's `exif_transpose`, but for what it leaves of EXIF.

    That one writes all EXIF tags anew, which fails where one of them is damaged.
    """
    load_pixels(image)
    turn = TURNS.get(orientation_of(image) or 1)
    return image if turn is None else image.transpose(turn)


def load_pixels(image: Image.Image) -> None:
    """Decode a picture.

    An uncompressed TIFF that Pillow opened by its name it maps into memory, at the size that the
    picture has upright: one that is turned by a quarter is sheared. Without the name it reads it.
    """
    if image.format != "TIFF" or not isinstance(image, ImageFile.ImageFile):
        image.load()
        return
    name, image.filename = image.filename, ""
    try:
        image.load()
    finally:
        image.filename = name


def orientation_of(image: Image.Image) -> int | None:
    """How a picture's camera was held, from 1 to 8; None where that is not told."""
    try:
        found: int | None = image.getexif().get(ExifTags.Base.Orientation)
    except (SyntaxError, struct.error):  # EXIF that is none: Pillow itself ignores it in a JPEG
        return None
    return found


def scaled(box: Box, down: float, right: float) -> Box:
    """The same part of the same picture at another size.

    >>> scaled(Box(0, 10, 20, 20), 0.5, 0.5)
    Box(top=0, left=5, height=10, width=10)
    """
    top, bottom = (round(edge * down) for edge in (box.top, box.top + box.height))
    left, far = (round(edge * right) for edge in (box.left, box.left + box.width))
    return Box(top, left, max(1, bottom - top), max(1, far - left))


def as_rgb(image: str | Path | Image.Image) -> Image.Image:
    """A picture, or that of a file, upright and in RGB.

    Raises:
        TypeError: It is neither.
        ValueError: Its pixels have an unknown range.
    """
    if isinstance(image, str | Path):
        return load_image(image)
    if not isinstance(image, Image.Image):
        raise TypeError(
            f"`image` must be a path or a picture of Pillow's, but is a {type(image).__name__}: "
            "PIL.Image.fromarray makes one of an array, torchvision's `to_pil_image` of a tensor."
        )
    bits = declared_bits(image)
    return to_rgb(upright(image), bits)


def to_rgb(image: Image.Image, bits: int | None = None) -> Image.Image:
    """A picture of any mode in RGB, with 8 bits a channel; transparency is dropped, as in Pillow.

    >>> to_rgb(Image.new("I;16", (1, 1), 65535)).getpixel((0, 0))
    (255, 255, 255)

    Args:
        image: The picture.
        bits: How many a channel has, where that was found out before it was decoded.

    Raises:
        ValueError: Its pixels have an unknown range.
    """
    image = eight_bits(image, declared_bits(image) if bits is None else bits)
    if image.mode == "P":  # it may hold transparency, which only RGBA takes without a warning
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")

"""Check whether an image file is complete, without decoding it."""

import os
from typing import BinaryIO

from PIL import ExifTags, Image

TAIL = 64
ENDINGS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
"""A marker in the last bytes of a complete file."""


def is_complete(file: BinaryIO, image: Image.Image) -> bool:
    """Whether a file is certainly complete; False if only decoding can show this.

    Args:
        file: The open file.
        image: Its image, not decoded yet.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - TAIL))
    tail = file.read(TAIL)
    if image.format in ENDINGS:
        return ENDINGS[image.format] in tail
    if image.format == "WEBP":
        file.seek(4)
        return int.from_bytes(file.read(4), "little") + 8 <= size
    if image.format == "TIFF":
        return tiff_end(image) <= size
    return False


def tiff_end(image: Image.Image) -> float:
    """The end of the last strip or tile of a TIFF's first image; infinity if unknown."""
    tags = getattr(image, "tag_v2", {})
    kinds = (
        (ExifTags.Base.StripOffsets, ExifTags.Base.StripByteCounts),
        (ExifTags.Base.TileOffsets, ExifTags.Base.TileByteCounts),
    )
    ends = [
        start + length
        for starts, lengths in kinds
        for start, length in zip(tags.get(starts, ()), tags.get(lengths, ()), strict=False)
    ]
    return max(ends, default=float("inf"))

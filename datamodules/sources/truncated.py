"""Whether a file of a picture goes on to its end, without decoding it."""

import os
from typing import BinaryIO

from PIL import ExifTags, Image

TAIL = 64
ENDINGS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
"""What the last bytes of a whole file hold."""


def is_surely_whole(file: BinaryIO, image: Image.Image) -> bool:
    """Whether a file holds all that its start announces; False where only decoding would tell.

    Args:
        file: The file, open.
        image: The picture in it, not decoded yet.
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
        return end_of_tiff(image) <= size
    return False


def end_of_tiff(image: Image.Image) -> float:
    """Where the last strip or tile of a TIFF's first picture ends; far away if that is not told."""
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

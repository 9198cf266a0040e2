"""Telling pictures from other files: by suffix, and where that says nothing by content."""

import mimetypes
from pathlib import Path, PurePath

from lit_finetune.images.read import IMAGE_SUFFIXES, open_image

SIGNED_FORMATS = (
    *("JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "PPM", "AVIF", "JPEG2000", "QOI", "SGI", "DDS"),
    *("HEIF", "HEIC", "JXL"),  # where a plugin of Pillow's reads them
)
"""Formats whose files begin with bytes that hardly any other file begins with."""

GRAPHICS = (".gif", ".ico", ".icns", ".cur", ".psd", ".eps", ".ps", ".svg", ".pdf")
"""Icons, animations and placeholders of web pages, which lie among photographs by accident."""

RAW = (
    *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".iiq", ".kdc"),
    *(".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2"),
    *(".srf", ".srw", ".svs", ".thm", ".x3f", ".dcm"),
)
"""Of cameras and scanners: what Pillow sees in many of them is a TIFF or JPEG of thumbnail size."""

BY_PLUGIN = (".heic", ".heif", ".jxl")
"""What Pillow reads where a plugin was registered."""

LEFTOVERS = ("~", "_original", ".bak", ".old", ".orig", ".part", ".crdownload", ".tmp", ".swp")
"""How the names of backups and of downloads that stopped end."""


def is_named_picture(name: str) -> bool:
    """Whether a file's name says that it is a picture.

    >>> is_named_picture("bee.JPG"), is_named_picture("bee"), is_named_picture("bee.jpg.part")
    (True, False, False)
    """
    return PurePath(name).suffix.lower() in IMAGE_SUFFIXES


def is_graphic(name: str) -> bool:
    """Whether a name is that of an icon, an animation or a drawing."""
    return name.lower().endswith(GRAPHICS)


def is_picture(path: Path) -> bool:
    """Whether a regular file is one of the pictures of its folder."""
    if is_named_picture(path.name):
        return True
    name = path.name.lower()
    if name.endswith((*GRAPHICS, *RAW, *LEFTOVERS)):
        return False
    try:
        with open_image(path, formats=SIGNED_FORMATS):
            return True
    except Exception:  # a file that is none ends in almost any kind of error inside Pillow
        return False


def is_of_other_kind(name: str) -> bool:
    """Whether a name is that of a picture, but of a kind that is not read.

    >>> is_of_other_kind("bee.gif"), is_of_other_kind("bee.heic"), is_of_other_kind("bee.txt")
    (True, True, False)
    """
    if is_named_picture(name):
        return False
    kind = mimetypes.guess_type(name)[0] or ""
    return kind.startswith("image/") or name.lower().endswith((*GRAPHICS, *RAW, *BY_PLUGIN))

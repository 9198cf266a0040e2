"""Tell images from other files: by suffix, or else by content."""

import mimetypes
from pathlib import Path, PurePath

from lit_finetune.images.read import open_image
from lit_finetune.images.suffixes import IMAGE_SUFFIXES

SIGNED_FORMATS = (
    *("JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "PPM", "AVIF", "JPEG2000", "QOI", "SGI", "DDS"),
    *("HEIF", "HEIC", "JXL"),  # with a plugin of Pillow
)
"""Formats whose first bytes are a reliable signature."""

GRAPHIC_SUFFIXES = (".gif", ".ico", ".icns", ".cur", ".psd", ".eps", ".ps", ".svg", ".pdf")
"""Icons, animations and drawings, which are among photographs by accident."""

RAW_SUFFIXES = (
    *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".iiq", ".kdc"),
    *(".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2"),
    *(".srf", ".srw", ".svs", ".thm", ".x3f", ".dcm"),
)
"""Files of cameras and scanners, of which Pillow often reads only a thumbnail."""

PLUGIN_SUFFIXES = (".heic", ".heif", ".jxl")
"""Formats that Pillow reads with a registered plugin."""

BACKUP_SUFFIXES = (
    "~",
    "_original",
    ".bak",
    ".old",
    ".orig",
    ".part",
    ".crdownload",
    ".tmp",
    ".swp",
)
"""Endings of backups and of incomplete downloads."""


def has_image_suffix(name: str) -> bool:
    """Whether a file has the suffix of an image.

    >>> has_image_suffix("bee.JPG"), has_image_suffix("bee"), has_image_suffix("bee.jpg.part")
    (True, False, False)
    """
    return PurePath(name).suffix.lower() in IMAGE_SUFFIXES


def is_graphic(name: str) -> bool:
    """Whether a file has the suffix of an icon, an animation or a drawing."""
    return name.lower().endswith(GRAPHIC_SUFFIXES)


def is_image(path: Path) -> bool:
    """Whether a regular file is an image, by its suffix or its content."""
    if has_image_suffix(path.name):
        return True
    name = path.name.lower()
    if name.endswith((*GRAPHIC_SUFFIXES, *RAW_SUFFIXES, *BACKUP_SUFFIXES)):
        return False
    try:
        with open_image(path, formats=SIGNED_FORMATS):
            return True
    except Exception:  # on other files Pillow raises almost any error
        return False


def is_unsupported_image(name: str) -> bool:
    """Whether a file has the suffix of an image format that is not read.

    >>> [is_unsupported_image(name) for name in ("bee.gif", "bee.heic", "bee.txt")]
    [True, True, False]
    """
    if has_image_suffix(name):
        return False
    kind = mimetypes.guess_type(name)[0] or ""
    return kind.startswith("image/") or name.lower().endswith(
        (*GRAPHIC_SUFFIXES, *RAW_SUFFIXES, *PLUGIN_SUFFIXES)
    )

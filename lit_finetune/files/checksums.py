"""Bytes in files that may have been changed, cut short or put there by somebody else.

They are read, and never mapped into memory: a mapped file that is cut short ends the process.
"""

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

WRITTEN = 1 << 32
"""Set in the checksum of what was written, so that none is 0: that is what a new file holds."""


def checksum(parts: Sequence[memoryview], *, seed: int = 0) -> int:
    """A number that another content does not have, but for one in four billion; never 0.

    >>> checksum([memoryview(b"ab"), memoryview(b"c")]) == checksum([memoryview(b"abc")])
    True

    Args:
        parts: The content, in pieces.
        seed: Another number gives other checksums: for what the content belongs to.
    """
    for part in parts:
        seed = crc32(part, seed)
    return seed | WRITTEN


def open_regular(path: Path, *, writable: bool = False) -> int:
    """A descriptor of a file that is neither a link nor a pipe.

    Raises:
        OSError: There is no such file, or it is something else, or may not be opened.
    """
    flags = os.O_RDWR if writable else os.O_RDONLY
    for name in ("O_BINARY", "O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK"):  # not all systems have all
        flags |= getattr(os, name, 0)
    file = os.open(path, flags)
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode) or (writable and found.st_nlink > 1):
        os.close(file)
        raise OSError(f"'{path}' is no file of its own")
    return file


def read_at(file: int, offset: int, parts: Sequence[memoryview]) -> bool:
    """Fill some memory from a place in a file; whether the file reaches that far.

    Safe in processes that share the file, and where it is cut short at any time.
    """
    wanted = sum(part.nbytes for part in parts)
    try:
        if hasattr(os, "preadv"):
            return os.preadv(file, parts, offset) == wanted
        os.lseek(file, offset, os.SEEK_SET)
        for part in parts:
            part[:] = os.read(file, part.nbytes)
    except (OSError, ValueError):  # the disk has an error there; the file is too short
        return False
    return True


def write_at(file: int, offset: int, parts: Sequence[memoryview]) -> None:
    """Write some memory to a place in a file.

    Raises:
        OSError: There is no room.
    """
    content = b"".join(parts)
    while content:
        if hasattr(os, "pwrite"):
            done = os.pwrite(file, content, offset)
        else:
            os.lseek(file, offset, os.SEEK_SET)
            done = os.write(file, content)
        content, offset = content[done:], offset + done

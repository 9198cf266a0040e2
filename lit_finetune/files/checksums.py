"""Read, write and check bytes in files that may be changed or truncated at any time.

Files are never mapped into memory: truncating a mapped file kills the process that reads it.
"""

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

WRITTEN_BIT = 1 << 32
"""Set in each checksum, so that none is 0: a new file is full of zeros."""


def checksum(parts: Sequence[memoryview], *, seed: int = 0) -> int:
    """A checksum (CRC-32 and a set bit) that is never 0; two contents rarely share one.

    >>> checksum([memoryview(b"ab"), memoryview(b"c")]) == checksum([memoryview(b"abc")])
    True

    Args:
        parts: The content, in pieces.
        seed: Makes the checksum depend on where the content belongs.
    """
    for part in parts:
        seed = crc32(part, seed)
    return seed | WRITTEN_BIT


def open_regular(path: Path, *, writable: bool = False) -> int:
    """Open a regular file, and no link or pipe; the file descriptor.

    Raises:
        OSError: The file does not exist, is no regular file, or may not be opened.
    """
    flags = os.O_RDWR if writable else os.O_RDONLY
    # Each exists on some systems only.
    for name in ("O_BINARY", "O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK"):
        flags |= getattr(os, name, 0)
    file = os.open(path, flags)
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode) or (writable and status.st_nlink > 1):
        os.close(file)
        raise OSError(f"'{path}' is no file of its own")
    return file


def read_at(file: int, offset: int, parts: Sequence[memoryview]) -> bool:
    """Fill buffers from an offset in a file; False if the file ends before.

    Safe if processes share the file, and if it is truncated at any time.
    """
    size = sum(part.nbytes for part in parts)
    try:
        if hasattr(os, "preadv"):
            return os.preadv(file, parts, offset) == size
        os.lseek(file, offset, os.SEEK_SET)
        for part in parts:
            part[:] = os.read(file, part.nbytes)
    except (OSError, ValueError):  # an error of the disk; the file is too short
        return False
    return True


def write_at(file: int, offset: int, parts: Sequence[memoryview]) -> None:
    """Write buffers to an offset in a file.

    Raises:
        OSError: The disk is full.
    """
    content = b"".join(parts)
    while content:
        if hasattr(os, "pwrite"):
            written = os.pwrite(file, content, offset)
        else:
            os.lseek(file, offset, os.SEEK_SET)
            written = os.write(file, content)
        content, offset = content[written:], offset + written

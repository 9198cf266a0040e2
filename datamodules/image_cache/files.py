"""Shards: files of pixels that are written once, completely, and never changed.

A shard contains the pixels of its images, one after the other, then an index of them, then a footer
with the offset of the index. It is written to a temporary file and renamed, so that it is always
complete. Images and index have checksums, which reveal later changes.
"""

import os
import struct
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray

from lit_finetune.files.atomic_write import atomic_write, open_lock
from lit_finetune.files.checksums import checksum, open_regular

from ..cached_images import Pixels

SUFFIX = ".pictures"
FOOTER = struct.Struct("<16sQQQ")  # magic number; offset, length and checksum of the index
MAGIC = b"lit-finetune-2\n\0"
MAX_SIDE = 2**24  # of an image, so that sizes do not overflow
LOCK = "lock"


@dataclass(frozen=True, slots=True)
class Shard:
    """The index of a file: name, stamp, offset, shape and checksum of each image."""

    path: Path
    names: Sequence[str]
    stamps: NDArray[np.int64]
    starts: NDArray[np.int64]
    shapes: NDArray[np.int64]
    sums: NDArray[np.int64]


def write_shard(
    folder: Path, names: Sequence[str], stamps: Sequence[Sequence[int]], images: Iterable[Pixels]
) -> Path:
    """Write images (H, W, C), completely or not at all.

    Raises:
        OSError: The disk is full, or the folder is not writable.
    """
    path = folder / f"{uuid.uuid4().hex}{SUFFIX}"
    with atomic_write(path) as file:
        starts, shapes, sums = [], [], []
        for image in images:
            content = np.ascontiguousarray(image).reshape(-1).data
            starts.append(file.tell())
            shapes.append(image.shape)
            sums.append(checksum([content]))
            file.write(content)
        index = to_npz(
            names=np.frombuffer("\0".join(names).encode("utf-8", "surrogateescape"), np.uint8),
            stamps=np.array(stamps, np.int64),
            starts=np.array(starts, np.int64),
            shapes=np.array(shapes, np.int64),
            sums=np.array(sums, np.int64),
        )
        offset, index_sum = file.tell(), checksum([memoryview(index)])
        file.write(index + FOOTER.pack(MAGIC, offset, len(index), index_sum))
    return path


def to_npz(**arrays: NDArray[Any]) -> bytes:
    """Arrays as the bytes of an `.npz` file."""
    buffer = BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def read_shard(path: Path) -> Shard | None:
    """Read the index of a file; None if it is no shard, damaged, or removed meanwhile."""
    try:
        with open(open_regular(path), "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(size - FOOTER.size)
            magic, offset, length, index_sum = FOOTER.unpack(file.read())
            if magic != MAGIC or offset + length + FOOTER.size != size:
                return None
            file.seek(offset)
            index = file.read(length)
        if checksum([memoryview(index)]) != index_sum:
            return None
        return _shard(path, _from_npz(index), end=offset)
    except Exception:  # a foreign file can raise any error
        return None


def _from_npz(index: bytes) -> dict[str, NDArray[Any]]:
    """The arrays of an `.npz` file.

    Raises:
        ValueError: They are larger than the file.
    """
    with np.load(BytesIO(index), allow_pickle=False) as arrays:
        if sum(each.file_size for each in arrays.zip.infolist()) > len(index):
            raise ValueError("it is compressed: we write no such file")
        return dict(arrays)


def _shard(path: Path, index: Mapping[str, NDArray[Any]], *, end: int) -> Shard | None:
    """The shard with this index; None if the index is invalid."""
    names = bytes(index["names"]).decode("utf-8", "surrogateescape").split("\0")
    shard = Shard(path, names, *(index[key] for key in ("stamps", "starts", "shapes", "sums")))
    arrays = (shard.stamps, shard.starts, shard.shapes, shard.sums)
    if any(each.dtype != np.int64 or len(each) != len(names) for each in arrays):
        return None
    if shard.shapes.shape[1:] != (3,) or shard.starts.ndim != 1 or shard.stamps.ndim != 2:
        return None
    is_valid = (shard.shapes > 0).all() and (shard.shapes[:, :2] <= MAX_SIDE).all()
    if not is_valid or (shard.shapes[:, 2] > MAX_SIDE // 2**16).any():
        return None
    ends = shard.starts + shard.shapes.prod(axis=1)
    return shard if (shard.starts >= 0).all() and (ends <= end).all() else None


def read_shards(folder: Path) -> list[Shard]:
    """All shards in a folder, in an order that is the same in every process."""
    shards = (read_shard(path) for path in sorted(folder.glob(f"*{SUFFIX}")))
    return [shard for shard in shards if shard is not None]


@contextmanager
def write_lock(folder: Path) -> Iterator[None]:
    """Lock a folder for writing; wait while another process has the lock.

    The system releases the lock of a process that ends, however it ends.
    """
    try:
        import fcntl
    except ModuleNotFoundError:  # on Windows two runs may write the same images: no harm
        yield
        return
    with open_lock(folder / LOCK) as file:  # follows no link
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            rank_zero_info(f"Another run writes pictures into '{folder}': waiting for it.")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def remove_outdated(folder: Path, is_current: Callable[[str, Sequence[int]], bool]) -> None:
    """Remove damaged shards, and shards whose images have all changed.

    The caller has the write lock. A run that uses such a shard reads the original images instead.

    Args:
        folder: Contains the shards.
        is_current: Whether the image of a name still has a stamp.
    """
    old, damaged = [], []
    for path in folder.glob(f"*{SUFFIX}"):
        shard = read_shard(path)
        if shard is None and path.exists():
            damaged.append(path)
        elif shard and not any(map(is_current, shard.names, shard.stamps.tolist())):
            old.append(path)
    if damaged:
        rank_zero_info(
            f"{len(damaged)} of the files in '{folder}' are damaged, or were not written there:"
            " they are removed, and their pictures are prepared again."
        )
    for path in [*old, *damaged]:  # `atomic_write` removes incomplete shards
        with suppress(OSError):
            path.unlink(missing_ok=True)

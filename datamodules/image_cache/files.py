"""Files of pixels: each is whole, says what it holds, and never changes once it is there.

A shard is the pixels of its pictures, one after the other, then an index of them, then where the
index lies. It is written beside its place and renamed: who finds it finds all of it. Pictures and
index have checksums, by which what was changed later is told.
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
FOOTER = struct.Struct("<16sQQQ")  # a mark, where the index begins, how long it is, its checksum
MARK = b"lit-finetune-2\n\0"
LONGEST = 2**24  # a side of a picture, so that sizes do not overflow
LOCK = "lock"


@dataclass(frozen=True, slots=True)
class Shard:
    """What a file holds: of each picture name, stamp, where it begins, shape and checksum."""

    path: Path
    names: Sequence[str]
    stamps: NDArray[np.int64]
    starts: NDArray[np.int64]
    shapes: NDArray[np.int64]
    sums: NDArray[np.int64]


def write_shard(
    folder: Path, names: Sequence[str], stamps: Sequence[Sequence[int]], pictures: Iterable[Pixels]
) -> Path:
    """Write pictures (H, W, C), at once or not at all.

    Raises:
        OSError: The disk is full, or the folder cannot be written to.
    """
    path = folder / f"{uuid.uuid4().hex}{SUFFIX}"
    with atomic_write(path) as file:
        starts, shapes, sums = [], [], []
        for picture in pictures:
            content = np.ascontiguousarray(picture).reshape(-1).data
            starts.append(file.tell())
            shapes.append(picture.shape)
            sums.append(checksum([content]))
            file.write(content)
        index = as_bytes(
            names=np.frombuffer("\0".join(names).encode("utf-8", "surrogateescape"), np.uint8),
            stamps=np.array(stamps, np.int64),
            starts=np.array(starts, np.int64),
            shapes=np.array(shapes, np.int64),
            sums=np.array(sums, np.int64),
        )
        begin = file.tell()
        known = checksum([memoryview(index)])
        file.write(index + FOOTER.pack(MARK, begin, len(index), known))
    return path


def as_bytes(**arrays: NDArray[Any]) -> bytes:
    """Arrays as the bytes of an `.npz` file."""
    buffer = BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def read_shard(path: Path) -> Shard | None:
    """What a file holds; None if it is no shard, not a whole one, or gone by now."""
    try:
        with open(open_regular(path), "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(size - FOOTER.size)
            mark, begin, length, known = FOOTER.unpack(file.read())
            if mark != MARK or begin + length + FOOTER.size != size:
                return None
            file.seek(begin)
            index = file.read(length)
        if checksum([memoryview(index)]) != known:
            return None
        return _shard(path, _unpacked(index), end=begin)
    except Exception:  # NumPy's and the system's; what others have made fails in any way
        return None


def _unpacked(index: bytes) -> dict[str, NDArray[Any]]:
    """The arrays of an `.npz` file.

    Raises:
        ValueError: They are larger than the file.
    """
    with np.load(BytesIO(index), allow_pickle=False) as arrays:
        if sum(each.file_size for each in arrays.zip.infolist()) > len(index):
            raise ValueError("it is compressed: this is not ours")
        return dict(arrays)


def _shard(path: Path, index: Mapping[str, NDArray[Any]], *, end: int) -> Shard | None:
    """What an index says; None if that cannot be."""
    names = bytes(index["names"]).decode("utf-8", "surrogateescape").split("\0")
    shard = Shard(path, names, *(index[key] for key in ("stamps", "starts", "shapes", "sums")))
    arrays = (shard.stamps, shard.starts, shard.shapes, shard.sums)
    if any(each.dtype != np.int64 or len(each) != len(names) for each in arrays):
        return None
    if shard.shapes.shape[1:] != (3,) or shard.starts.ndim != 1 or shard.stamps.ndim != 2:
        return None
    is_possible = (shard.shapes > 0).all() and (shard.shapes[:, :2] <= LONGEST).all()
    if not is_possible or (shard.shapes[:, 2] > LONGEST // 2**16).any():
        return None
    ends = shard.starts + shard.shapes.prod(axis=1)
    return shard if (shard.starts >= 0).all() and (ends <= end).all() else None


def read_shards(folder: Path) -> list[Shard]:
    """All the shards in a folder, in an order that is the same for everyone."""
    shards = (read_shard(path) for path in sorted(folder.glob(f"*{SUFFIX}")))
    return [shard for shard in shards if shard is not None]


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold the right to write into a folder; wait for it while another process has it.

    The system takes it from a process that ends, however it ends.
    """
    try:
        import fcntl
    except ModuleNotFoundError:  # on Windows two runs may both write the same pictures: no harm
        yield
        return
    with open_lock(folder / LOCK) as file:  # which follows no link
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            rank_zero_info(f"Another run writes pictures into '{folder}': waiting for it.")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sweep(folder: Path, is_current: Callable[[str, Sequence[int]], bool]) -> None:
    """Remove what killed writers left, and shards that are damaged or whose pictures are all old.

    Only for who holds the right to write. A run that reads such a file does without it from then.

    Args:
        folder: It holds the shards.
        is_current: From name and stamp to whether the picture is still that.
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
            " they are removed, and their pictures made ready anew."
        )
    for path in [*old, *damaged]:  # half a shard `atomic_write` removes
        with suppress(OSError):
            path.unlink(missing_ok=True)

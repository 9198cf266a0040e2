"""Files of pixels: each is whole, says what it holds, and never changes once it is there.

A shard is the pixels of its pictures, one after the other, then an index of them, then where the
index lies. It is written beside its place and renamed: who finds it finds all of it.
"""

import os
import struct
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray

from .stock import Pixels

SUFFIX = ".pictures"
FOOTER = struct.Struct("<16sQQ")  # a mark, where the index begins, how long it is
MARK = b"lit-finetune-1\n\0"
LOCK = "lock"


@dataclass(frozen=True, slots=True)
class Shard:
    """What a file holds: of each picture its name, its stamp, where it begins and its shape."""

    path: Path
    names: Sequence[str]
    stamps: NDArray[np.int64]
    starts: NDArray[np.int64]
    shapes: NDArray[np.int64]


def write_shard(
    folder: Path, names: Sequence[str], stamps: Sequence[Sequence[int]], pictures: Iterable[Pixels]
) -> Path:
    """Write pictures (H, W, C), at once or not at all.

    Raises:
        OSError: The disk is full, or the folder cannot be written to.
    """
    path = folder / f"{uuid.uuid4().hex}{SUFFIX}"
    half = path.with_suffix(".tmp")
    try:
        with half.open("wb") as file:
            starts, shapes = [], []
            for picture in pictures:
                starts.append(file.tell())
                shapes.append(picture.shape)
                file.write(np.ascontiguousarray(picture).data)
            index = as_bytes(
                names=np.frombuffer("\0".join(names).encode("utf-8", "surrogateescape"), np.uint8),
                stamps=np.array(stamps, np.int64),
                starts=np.array(starts, np.int64),
                shapes=np.array(shapes, np.int64),
            )
            begin = file.tell()
            file.write(index + FOOTER.pack(MARK, begin, len(index)))
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave the name without the pixels
        os.replace(half, path)
    finally:
        with suppress(OSError):
            half.unlink(missing_ok=True)
    return path


def as_bytes(**arrays: NDArray[Any]) -> bytes:
    """Arrays as the bytes of an `.npz` file."""
    buffer = BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def read_shard(path: Path) -> Shard | None:
    """What a file holds; None if it is no shard, not a whole one, or gone by now."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(size - FOOTER.size)
            mark, begin, length = FOOTER.unpack(file.read())
            if mark != MARK or begin + length + FOOTER.size != size:
                return None
            file.seek(begin)
            index = np.load(BytesIO(file.read(length)), allow_pickle=False)
            names = bytes(index["names"]).decode("utf-8", "surrogateescape").split("\0")
            return Shard(path, names, index["stamps"], index["starts"], index["shapes"])
    except (OSError, ValueError, KeyError, struct.error):
        return None


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
    with (folder / LOCK).open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            rank_zero_info(f"Another run writes pictures into '{folder}': waiting for it.")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sweep(folder: Path, is_current: Callable[[str, Sequence[int]], bool]) -> None:
    """Remove what killed writers left, and shards whose pictures have all changed or gone.

    Only for who holds the right to write. A run that reads such a file does without it from then.

    Args:
        folder: It holds the shards.
        is_current: From name and stamp to whether the picture is still that.
    """
    old = [
        shard.path
        for shard in read_shards(folder)
        if not any(map(is_current, shard.names, shard.stamps.tolist()))
    ]
    for path in [*old, *folder.glob("*.tmp")]:
        with suppress(OSError):
            path.unlink(missing_ok=True)

"""A table in a folder of files, which later runs share.

It is written under another name, and has its own only when all of it was written: what a killed
writer left is never read, and is thrown away by whoever comes next. Each row carries a checksum of
its content and its place. So what was changed, and what nobody has written, is told from the rest.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_finetune.feature_cache.store import Columns, Rows
from lit_finetune.files.checksums import checksum, open_regular, read_at, write_at

_ABOUT, _ROWS, _LOCK, _PART = "about.json", "rows.bin", "lock", ".part-"
_SUM_BYTES = 8
_LARGE_ROW = 2**16
"""Bytes of a row from which on several are read at once."""


class DamagedTableError(ValueError):
    """A folder does not hold the table that it should. The message goes on from: it …."""


class FileTable:
    """Rows in a file, each with its columns one after the other, and their checksum.

    Args:
        folder: Where the file is.
        columns: What a row holds.
        about: The text that describes the table; checksums depend on it.
        num_threads: How many large rows are read at once; as many as torch uses if not given.
    """

    def __init__(
        self, folder: Path, columns: Columns, about: bytes, *, num_threads: int | None = None
    ) -> None:
        self.columns = columns
        self.where = str(folder)
        self._path = folder / _ROWS
        self._file = open_regular(self._path)
        self._seed = crc32(about)
        self._row_bytes = _row_bytes(columns)
        self._num_threads = num_threads or torch.get_num_threads()

    def __del__(self) -> None:
        if (file := vars(self).get("_file")) is not None:
            os.close(file)

    def read(self, numbers: Sequence[int]) -> Rows:
        """The rows of these numbers."""
        kept = _empty(self.columns, len(numbers))
        sums = torch.zeros(len(numbers), _SUM_BYTES, dtype=torch.uint8)
        views = [_as_bytes(each).numpy() for each in (*kept.values(), sums)]
        states = self._map(partial(self._read_row, views), list(enumerate(numbers)))
        unwritten = [place for place, state in enumerate(states) if state is None]
        changed = [place for place, state in enumerate(states) if state is False]
        for place in (*unwritten, *changed):
            for rows in kept.values():
                rows[place].zero_()
        batch = {name: column.unpack(kept[name]) for name, column in self.columns.items()}
        return Rows(batch, unwritten, changed)

    def write(self, numbers: Sequence[int], batch: Mapping[str, Tensor]) -> None:
        """Keep a batch under these numbers.

        Raises:
            OSError: There is no room, or no right to write.
        """
        file = open_regular(self._path, writable=True)
        try:
            _write_rows(file, self.columns, self._seed, numbers, batch)
        finally:
            os.close(file)

    def _read_row(
        self, views: Sequence[NDArray[np.uint8]], place_of: tuple[int, int]
    ) -> bool | None:
        """Whether a row is what was written; None if nothing was."""
        place, number = place_of
        *row, found = [view[place].data for view in views]
        if not read_at(self._file, number * self._row_bytes, [*row, found]):
            return False
        known = int.from_bytes(found.tobytes(), "little")
        return None if not known else known == checksum(row, seed=_row_seed(self._seed, number))

    def _map(self, read: partial[bool | None], places: list[tuple[int, int]]) -> list[bool | None]:
        if self._row_bytes < _LARGE_ROW or self._num_threads == 1:
            return list(map(read, places))
        with ThreadPoolExecutor(self._num_threads) as pool:  # reading and summing need no GIL
            return list(pool.map(read, places))


class FileWriter:
    """Fills a table; several processes may, each its own rows.

    Raises:
        OSError: The file cannot be opened.
    """

    def __init__(self, part: Path, folder: Path, columns: Columns) -> None:
        self.columns = columns
        self._seed = crc32(describe_table(folder, columns))
        self._file: int | None = open_regular(part / _ROWS, writable=True)

    def write(self, numbers: Sequence[int], batch: Mapping[str, Tensor]) -> None:
        """Keep a batch under these numbers."""
        assert self._file is not None, "it is not closed yet"
        _write_rows(self._file, self.columns, self._seed, numbers, batch)

    def close(self) -> None:
        """Let all that was written reach the disk."""
        if self._file is None:
            return
        file, self._file = self._file, None
        try:
            os.fsync(file)
        finally:
            os.close(file)


def describe_table(folder: Path, columns: Columns) -> bytes:
    """The text that a table of these columns has beside it in this folder."""
    about = {"table": folder.name, **{name: asdict(each) for name, each in columns.items()}}
    return json.dumps(about, indent=1).encode()


def part_of(folder: Path, token: str) -> Path:
    """Where a table is while it is written; `token` tells writers apart."""
    return folder.with_name(f"{_PART}{folder.name}-{token}")


def others_at_work(folder: Path) -> bool:
    """Whether another process is writing this table at the moment."""
    parts = folder.parent.glob(f"{_PART}{folder.name}-*")
    return any(map(_is_locked, parts))


def begin_files(part: Path, columns: Columns) -> BinaryIO:
    """Make room for a table.

    Args:
        part: Where it is while it is written.
        columns: What it will hold.

    Returns:
        What to keep as long as it is written: it shows others that somebody does.

    Raises:
        OSError: There is no room, or no right to write.
    """
    part.parent.mkdir(parents=True, exist_ok=True)
    throw_away_parts(part.parent)
    needed, free = num_file_bytes(columns), shutil.disk_usage(part.parent).free
    if needed > free:
        raise OSError(
            f"there is no room: {part.parent} has {free / 2**20:,.0f} MiB left, and it takes"
            f" {needed / 2**20:,.0f} MiB"
        )
    part.mkdir()
    lock = open(part / _LOCK, "xb")  # noqa: SIM115  (open while it is written)
    _try_lock(lock.fileno())
    try:
        with open(part / _ROWS, "xb") as file:
            _allocate(file, needed)
    except OSError:
        abandon_files(part, lock)
        raise
    return lock


def finish_files(part: Path, lock: BinaryIO, folder: Path, columns: Columns) -> None:
    """Give a table that is written its own name, in place of a damaged one.

    If another run has put a whole one there meanwhile, that one stays.

    Raises:
        OSError: It cannot be put there, and has its other name still.
    """
    with open(part / _ABOUT, "xb") as file:
        file.write(describe_table(folder, columns))
        file.flush()
        os.fsync(file.fileno())
    if os.name == "nt":  # where a folder with an open file has no other name
        lock.close()
    for _ in range(3):  # others may be doing the same
        try:
            part.rename(folder)
        except OSError:
            if not os.path.lexists(folder):
                raise
        else:
            lock.close()
            (folder / _LOCK).unlink(missing_ok=True)
            return
        with suppress(DamagedTableError, FileNotFoundError):
            open_files(folder, columns)
            remove(part)
            return
        remove(folder)
    raise OSError(f"'{folder}' cannot be replaced")


def abandon_files(part: Path, lock: BinaryIO) -> None:
    """Throw away what was begun."""
    lock.close()
    shutil.rmtree(part, ignore_errors=True)


def open_files(folder: Path, columns: Columns, part: Path | None = None) -> FileTable:
    """The table in a folder.

    Args:
        folder: Of the table.
        columns: What it must hold.
        part: Where it is, if it does not have its own name.

    Raises:
        FileNotFoundError: There is no such folder.
        DamagedTableError: It does not hold such a table; it says why.
        OSError: It may not be read.
    """
    about, place = describe_table(folder, columns), part or folder
    if not os.path.lexists(place):
        raise FileNotFoundError(f"'{place}' does not exist")
    try:
        with _opened(place / _ABOUT) as file:
            found = os.read(file, len(about) + 1)
        table = FileTable(place, columns, about)
        size, wanted = (place / _ROWS).stat().st_size, num_file_bytes(columns)
    except PermissionError:
        raise
    except OSError as error:
        raise DamagedTableError(f"is damaged ({error})") from error
    if found != about:
        raise DamagedTableError(f"is damaged, or another table's ('{_ABOUT}' has other values)")
    if size != wanted:
        raise DamagedTableError(f"is damaged ('{_ROWS}' has {size:,} bytes in place of {wanted:,})")
    return table


def throw_away_parts(root: Path) -> None:
    """Remove what killed writers have left in a folder; what is being written stays."""
    for part in root.glob(f"{_PART}*"):
        with suppress(OSError):
            is_ours = {path.name for path in part.iterdir()} <= {_ABOUT, _ROWS, _LOCK}
            if is_ours and not part.is_symlink() and _is_locked(part) is False:
                shutil.rmtree(part, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a folder, a file or a link, which is gone at once; what a link leads to stays."""
    aside = part_of(path, uuid4().hex)
    path.rename(aside)
    if aside.is_dir() and not aside.is_symlink():
        shutil.rmtree(aside, ignore_errors=True)
    else:
        aside.unlink()


def num_file_bytes(columns: Columns) -> int:
    """The room that a table takes in files."""
    return max(column.num_rows for column in columns.values()) * _row_bytes(columns)


def _row_bytes(columns: Columns) -> int:
    return sum(column.row_bytes for column in columns.values()) + _SUM_BYTES


def _row_seed(seed: int, number: int) -> int:
    return crc32(number.to_bytes(8, "little"), seed)


def _empty(columns: Columns, count: int) -> dict[str, Tensor]:
    return {
        name: torch.empty(count, column.row_bytes // column.kept.itemsize, dtype=column.kept)
        for name, column in columns.items()
    }


def _as_bytes(rows: Tensor) -> Tensor:
    """The bytes of each row, in the same memory."""
    return rows.view(len(rows), -1).view(torch.uint8)


def _write_rows(
    file: int, columns: Columns, seed: int, numbers: Sequence[int], batch: Mapping[str, Tensor]
) -> None:
    size = _row_bytes(columns)
    packed = [_as_bytes(columns[name].pack(batch[name]).contiguous()).numpy() for name in columns]
    for number, *row in zip(numbers, *packed, strict=True):
        parts = [part.data for part in row]
        known = checksum(parts, seed=_row_seed(seed, number)).to_bytes(_SUM_BYTES, "little")
        write_at(file, number * size, [*parts, memoryview(known)])


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    file = open_regular(path)
    try:
        yield file
    finally:
        os.close(file)


def _allocate(file: BinaryIO, num_bytes: int) -> None:
    """Take the room at once, where the system can: what is missing shows now, not in the end."""
    if hasattr(os, "posix_fallocate") and num_bytes:
        os.posix_fallocate(file.fileno(), 0, num_bytes)
    else:
        file.truncate(num_bytes)


def _is_locked(part: Path) -> bool | None:
    """Whether somebody writes there; None if nobody can tell."""
    try:
        with _opened(part / _LOCK) as file:
            return not _try_lock(file)
    except OSError:
        return None


def _try_lock(file: int) -> bool:
    """Whether nobody else has this file locked; then it is now."""
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows, where a file that is open cannot be removed
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True

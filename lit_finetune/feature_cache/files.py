"""A table in a folder of files, which later runs share.

A table is written under a temporary name and renamed when it is complete. So the rest of a killed
writer is never read; the next writer removes it. Each row has a checksum of its content and its
row number, which reveals rows that were changed and rows that were never written.
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
"""Bytes from which rows are read in parallel."""


class DamagedTableError(ValueError):
    """A folder does not hold the expected table. The message completes "the folder …"."""


class FileTable:
    """Rows in a file: the columns of a row, then its checksum.

    Args:
        folder: Contains the file.
        columns: The columns of a row.
        about: The description of the table (`describe_table`); the checksums depend on it.
        num_threads: Threads that read large rows; by default as many as torch uses.
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
        """Read the rows with these numbers."""
        stored = _empty(self.columns, len(numbers))
        sums = torch.zeros(len(numbers), _SUM_BYTES, dtype=torch.uint8)
        views = [_as_bytes(each).numpy() for each in (*stored.values(), sums)]
        states = self._map(partial(self._read_row, views), list(enumerate(numbers)))
        unwritten = [i for i, state in enumerate(states) if state is None]
        changed = [i for i, state in enumerate(states) if state is False]
        for i in (*unwritten, *changed):
            for rows in stored.values():
                rows[i].zero_()
        batch = {name: column.unpack(stored[name]) for name, column in self.columns.items()}
        return Rows(batch, unwritten, changed)

    def write(self, numbers: Sequence[int], batch: Mapping[str, Tensor]) -> None:
        """Write a batch to the rows with these numbers.

        Raises:
            OSError: The disk is full, or writing is not permitted.
        """
        file = open_regular(self._path, writable=True)
        try:
            _write_rows(file, self.columns, self._seed, numbers, batch)
        finally:
            os.close(file)

    def _read_row(
        self, views: Sequence[NDArray[np.uint8]], position: tuple[int, int]
    ) -> bool | None:
        """Read one row; whether its checksum matches, None if it was never written."""
        i, number = position
        *row, stored_sum = [view[i].data for view in views]
        if not read_at(self._file, number * self._row_bytes, [*row, stored_sum]):
            return False
        expected = int.from_bytes(stored_sum.tobytes(), "little")
        if not expected:
            return None
        return expected == checksum(row, seed=_row_seed(self._seed, number))

    def _map(self, read: partial[bool | None], rows: list[tuple[int, int]]) -> list[bool | None]:
        if self._row_bytes < _LARGE_ROW or self._num_threads == 1:
            return list(map(read, rows))
        with ThreadPoolExecutor(self._num_threads) as pool:  # reading and summing need no GIL
            return list(pool.map(read, rows))


class FileWriter:
    """Writes rows of a table; several processes may write different rows.

    Raises:
        OSError: The file cannot be opened.
    """

    def __init__(self, part: Path, folder: Path, columns: Columns) -> None:
        self.columns = columns
        self._seed = crc32(describe_table(folder, columns))
        self._file: int | None = open_regular(part / _ROWS, writable=True)

    def write(self, numbers: Sequence[int], batch: Mapping[str, Tensor]) -> None:
        """Write a batch to the rows with these numbers."""
        assert self._file is not None, "written after close()"
        _write_rows(self._file, self.columns, self._seed, numbers, batch)

    def close(self) -> None:
        """Flush everything to the disk and close the file."""
        if self._file is None:
            return
        file, self._file = self._file, None
        try:
            os.fsync(file)
        finally:
            os.close(file)


def describe_table(folder: Path, columns: Columns) -> bytes:
    """The JSON text that is stored with a table, for comparison when it is opened."""
    about = {"table": folder.name, **{name: asdict(each) for name, each in columns.items()}}
    return json.dumps(about, indent=1).encode()


def partial_path(folder: Path, token: str) -> Path:
    """The path of a table while it is written; `token` is unique to the writer."""
    return folder.with_name(f"{_PART}{folder.name}-{token}")


def has_other_writers(folder: Path) -> bool:
    """Whether another process is writing this table now."""
    parts = folder.parent.glob(f"{_PART}{folder.name}-*")
    return any(map(_is_locked, parts))


def create_files(part: Path, columns: Columns) -> BinaryIO:
    """Create the files of a table and allocate their bytes.

    Args:
        part: The path while the table is written (`partial_path`).
        columns: Its columns.

    Returns:
        The open lock file; keep it open while the table is written.

    Raises:
        OSError: The disk is full, or writing is not permitted.
    """
    part.parent.mkdir(parents=True, exist_ok=True)
    remove_stale_parts(part.parent)
    needed, free = num_file_bytes(columns), shutil.disk_usage(part.parent).free
    if needed > free:
        raise OSError(
            f"there is no room: {part.parent} has {free / 2**20:,.0f} MiB left, but the table needs"
            f" {needed / 2**20:,.0f} MiB"
        )
    part.mkdir()
    lock = open(part / _LOCK, "xb")  # noqa: SIM115  (open while it is written)
    _try_lock(lock.fileno())
    try:
        with open(part / _ROWS, "xb") as file:
            _allocate(file, needed)
    except OSError:
        discard_files(part, lock)
        raise
    return lock


def publish_files(part: Path, lock: BinaryIO, folder: Path, columns: Columns) -> None:
    """Rename a complete table to its final name, and replace a damaged one.

    A complete table that another run has put there in the meantime stays.

    Raises:
        OSError: Renaming failed; the table still has its temporary name.
    """
    with open(part / _ABOUT, "xb") as file:
        file.write(describe_table(folder, columns))
        file.flush()
        os.fsync(file.fileno())
    if os.name == "nt":  # a folder with an open file cannot be renamed
        lock.close()
    for _ in range(3):  # other runs may do the same at this moment
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


def discard_files(part: Path, lock: BinaryIO) -> None:
    """Close the lock and remove an incomplete table."""
    lock.close()
    shutil.rmtree(part, ignore_errors=True)


def open_files(folder: Path, columns: Columns, part: Path | None = None) -> FileTable:
    """Open the table in a folder.

    Args:
        folder: The final path of the table.
        columns: The columns that it must have.
        part: The path where it is now, if it does not have its final name.

    Raises:
        FileNotFoundError: The folder does not exist.
        DamagedTableError: The folder does not hold such a table; says why.
        OSError: Reading is not permitted.
    """
    about, path = describe_table(folder, columns), part or folder
    if not os.path.lexists(path):
        raise FileNotFoundError(f"'{path}' does not exist")
    try:
        with _opened(path / _ABOUT) as file:
            stored_about = os.read(file, len(about) + 1)
        table = FileTable(path, columns, about)
        size, expected = (path / _ROWS).stat().st_size, num_file_bytes(columns)
    except PermissionError:
        raise
    except OSError as error:
        raise DamagedTableError(f"is damaged ({error})") from error
    if stored_about != about:
        raise DamagedTableError(f"is damaged, or another table's ('{_ABOUT}' has other values)")
    if size != expected:
        raise DamagedTableError(
            f"is damaged ('{_ROWS}' has {size:,} bytes instead of {expected:,})"
        )
    return table


def remove_stale_parts(root: Path) -> None:
    """Remove the incomplete tables of killed writers; tables that are being written stay."""
    for part in root.glob(f"{_PART}*"):
        with suppress(OSError):
            is_ours = {path.name for path in part.iterdir()} <= {_ABOUT, _ROWS, _LOCK}
            if is_ours and not part.is_symlink() and _is_locked(part) is False:
                shutil.rmtree(part, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a folder, a file or a link at once (by renaming); the target of a link stays."""
    renamed = partial_path(path, uuid4().hex)
    path.rename(renamed)
    if renamed.is_dir() and not renamed.is_symlink():
        shutil.rmtree(renamed, ignore_errors=True)
    else:
        renamed.unlink()


def num_file_bytes(columns: Columns) -> int:
    """Bytes of the file of a table."""
    return max(column.num_rows for column in columns.values()) * _row_bytes(columns)


def _row_bytes(columns: Columns) -> int:
    return sum(column.row_bytes for column in columns.values()) + _SUM_BYTES


def _row_seed(seed: int, number: int) -> int:
    return crc32(number.to_bytes(8, "little"), seed)


def _empty(columns: Columns, count: int) -> dict[str, Tensor]:
    return {
        name: torch.empty(count, column.row_bytes // column.storage.itemsize, dtype=column.storage)
        for name, column in columns.items()
    }


def _as_bytes(rows: Tensor) -> Tensor:
    """A view of each row as bytes."""
    return rows.view(len(rows), -1).view(torch.uint8)


def _write_rows(
    file: int, columns: Columns, seed: int, numbers: Sequence[int], batch: Mapping[str, Tensor]
) -> None:
    size = _row_bytes(columns)
    packed = [_as_bytes(columns[name].pack(batch[name]).contiguous()).numpy() for name in columns]
    for number, *row in zip(numbers, *packed, strict=True):
        parts = [part.data for part in row]
        row_sum = checksum(parts, seed=_row_seed(seed, number)).to_bytes(_SUM_BYTES, "little")
        write_at(file, number * size, [*parts, memoryview(row_sum)])


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    file = open_regular(path)
    try:
        yield file
    finally:
        os.close(file)


def _allocate(file: BinaryIO, num_bytes: int) -> None:
    """Allocate all bytes at once where the system can, so that a full disk shows at the start."""
    if hasattr(os, "posix_fallocate") and num_bytes:
        os.posix_fallocate(file.fileno(), 0, num_bytes)
    else:
        file.truncate(num_bytes)


def _is_locked(part: Path) -> bool | None:
    """Whether a process is writing there; None if unknown."""
    try:
        with _opened(part / _LOCK) as file:
            return not _try_lock(file)
    except OSError:
        return None


def _try_lock(file: int) -> bool:
    """Lock a file; whether no other process holds the lock."""
    try:
        import fcntl
    except ModuleNotFoundError:  # on Windows an open file cannot be removed
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True

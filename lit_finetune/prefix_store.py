"""Tables of tensors, a row for each picture: in memory, or in files that later runs share.

In files a table is a folder. It is written under another name, and has its own only when it is
whole: what a killed writer left is never read, and is thrown away by whoever comes next.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

_ABOUT, _LOCK, _PART = "about.json", "lock", ".part-"


@dataclass(frozen=True, slots=True)
class Column:
    """How the rows of one kind are kept."""

    num_rows: int
    shape: tuple[int, ...]
    """Of one row, as the network has it."""
    order: tuple[int, ...]
    """Its dimensions as they lie in memory, the slowest first: channels may be last."""
    dtype: str
    """What the rows are kept in."""
    given: str
    """What the network computes them in, and gets them in."""

    @classmethod
    def of(cls, batch: Tensor, num_rows: int, dtype: torch.dtype | None = None) -> "Column":
        """A column for rows such as those of a batch.

        >>> Column.of(torch.ones(2, 3), 100, torch.float16).num_bytes
        600

        Args:
            batch: Some rows.
            num_rows: How many there will be.
            dtype: What they are kept in, if that is smaller than what they are.
        """
        order = sorted(range(1, batch.ndim), key=batch.stride, reverse=True)
        is_smaller = dtype is not None and dtype.itemsize < batch.dtype.itemsize
        kept = dtype if is_smaller and batch.is_floating_point() else batch.dtype
        names = [str(each).removeprefix("torch.") for each in (kept, batch.dtype)]
        return cls(num_rows, tuple(batch.shape[1:]), tuple(dim - 1 for dim in order), *names)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Column":
        """What `dataclasses.asdict` has made of one, perhaps by way of JSON."""
        lists = {name: tuple(values[name]) for name in ("shape", "order")}
        return cls(**{**values, **lists})

    @property
    def kept(self) -> torch.dtype:
        """What the rows are kept in."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @property
    def row_bytes(self) -> int:
        """The room that a row takes."""
        return prod(self.shape) * self.kept.itemsize

    @property
    def num_bytes(self) -> int:
        """The room that all rows take."""
        return self.num_rows * self.row_bytes

    def pack(self, batch: Tensor) -> Tensor:
        """Rows as they are kept: flat, as they lie in memory."""
        dims = (0, *(dim + 1 for dim in self.order))
        return batch.detach().permute(dims).to("cpu", self.kept).reshape(len(batch), -1)

    def unpack(self, rows: Tensor) -> Tensor:
        """Kept rows as they were, in the order in memory too."""
        lying = rows.reshape(len(rows), *(self.shape[dim] for dim in self.order))
        places = (0, *(self.order.index(dim) + 1 for dim in range(len(self.shape))))
        return lying.permute(places).to(getattr(torch, self.given))


Columns = Mapping[str, Column]


class Table:
    """Columns of rows, read by number."""

    def __init__(self, columns: Columns, rows: Mapping[str, Tensor]) -> None:
        self.columns = columns
        self.rows = rows

    def read(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        """A batch of each column, which is the reader's own."""
        chosen = torch.tensor(numbers)
        return {
            name: column.unpack(self.rows[name][chosen]) for name, column in self.columns.items()
        }


class MemoryWriter:
    """Fills a table in memory."""

    def __init__(self, columns: Columns) -> None:
        self.columns = columns
        self._rows = {
            name: torch.empty(column.num_rows, prod(column.shape), dtype=column.kept)
            for name, column in columns.items()
        }

    def write(self, numbers: Sequence[int], batch: Mapping[str, Tensor]) -> None:
        """Keep a batch under these numbers."""
        for name, column in self.columns.items():
            self._rows[name][torch.tensor(numbers)] = column.pack(batch[name])

    def table(self) -> Table:
        """The table, when it is full."""
        return Table(self.columns, self._rows)


class FileWriter:
    """Fills a table in files; several processes may, each its own rows.

    Raises:
        OSError: There is no room, or no right to write.
    """

    def __init__(self, part: Path, columns: Columns) -> None:
        self.part = part
        self.columns = columns
        self._files: dict[str, BinaryIO] = {}
        for name in columns:
            self._files[name] = open(part / name, "r+b")  # noqa: SIM115  (open while it is written)

    def write(self, numbers: Sequence[int], batch: Mapping[str, Tensor]) -> None:
        """Keep a batch under these numbers."""
        for name, column in self.columns.items():
            rows = column.pack(batch[name]).contiguous().view(torch.uint8).numpy()
            for number, row in zip(numbers, rows, strict=True):
                self._files[name].seek(number * column.row_bytes)
                self._files[name].write(row.data)

    def close(self) -> None:
        """Let all that was written reach the disk."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()


def part_of(folder: Path, token: str) -> Path:
    """Where a table is while it is written; `token` tells writers apart."""
    return folder.with_name(f"{_PART}{folder.name}-{token}")


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
    needed, free = num_bytes(columns), shutil.disk_usage(part.parent).free
    if needed > free:
        raise OSError(f"{part.parent} has {free / 2**20:,.0f} MiB left")
    part.mkdir()
    lock = open(part / _LOCK, "wb")  # noqa: SIM115  (open while it is written)
    _try_lock(lock)
    try:
        for name, column in columns.items():
            with open(part / name, "wb") as file:
                _allocate(file, column.num_bytes)
    except OSError:
        abandon_files(part, lock)
        raise
    return lock


def finish_files(part: Path, lock: BinaryIO, folder: Path, columns: Columns) -> None:
    """Give a table that is whole its own name; if another run has done so meanwhile, drop this."""
    about = {name: asdict(column) for name, column in columns.items()}
    with open(part / _ABOUT, "w", encoding="utf-8") as file:
        json.dump(about, file)
        file.flush()
        os.fsync(file.fileno())
    lock.close()
    (part / _LOCK).unlink()
    try:
        part.rename(folder)
    except OSError:
        shutil.rmtree(part, ignore_errors=True)
        if not folder.is_dir():
            raise


def abandon_files(part: Path, lock: BinaryIO) -> None:
    """Throw away what was begun."""
    lock.close()
    shutil.rmtree(part, ignore_errors=True)


def open_files(folder: Path) -> Table | None:
    """The table in a folder; None where there is none, or not all of it."""
    try:
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
        columns = {name: Column.from_dict(values) for name, values in about.items()}
        sizes = {name: (folder / name).stat().st_size for name in columns}
    except (OSError, ValueError, TypeError, KeyError):
        return None
    if any(sizes[name] != column.num_bytes for name, column in columns.items()):
        return None
    rows = {name: _mapped(folder / name, column) for name, column in columns.items()}
    return Table(columns, rows)


def throw_away_parts(root: Path) -> None:
    """Remove what killed writers have left in a folder; what is being written stays."""
    for part in root.glob(f"{_PART}*"):
        with suppress(OSError), open(part / _LOCK, "ab") as lock:
            if _try_lock(lock):
                shutil.rmtree(part, ignore_errors=True)


def num_bytes(columns: Columns) -> int:
    """The room that a table takes."""
    return sum(column.num_bytes for column in columns.values())


def _mapped(path: Path, column: Column) -> Tensor:
    """The rows of a file, read into memory as they are used; nothing goes back to the file."""
    size = column.num_rows * prod(column.shape)
    rows = torch.from_file(str(path), shared=False, size=size, dtype=column.kept)
    return rows.view(column.num_rows, -1)


def _allocate(file: BinaryIO, num_bytes: int) -> None:
    """Take the room at once, where the system can: what is missing shows now, not in the end."""
    if hasattr(os, "posix_fallocate") and num_bytes:
        os.posix_fallocate(file.fileno(), 0, num_bytes)
    else:
        file.truncate(num_bytes)


def _try_lock(file: BinaryIO) -> bool:
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

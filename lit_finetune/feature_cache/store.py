"""Tables of tensors with one row per image, and the format of their rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Column:
    """The format of one column: its shape, its memory layout and its data types."""

    num_rows: int
    shape: tuple[int, ...]
    """Of one row, without the batch dimension."""
    order: tuple[int, ...]
    """The dimensions from the slowest to the fastest in memory: channels may be last."""
    stored_dtype: str
    """Of the stored rows, as a name in `torch`."""
    dtype: str
    """Of the rows that the network computes and receives."""

    @classmethod
    def of(cls, batch: Tensor, num_rows: int, dtype: torch.dtype | None = None) -> "Column":
        """The column for the rows of a batch.

        >>> Column.of(torch.ones(2, 3), 100, torch.float16).num_bytes
        600

        Args:
            batch: Sample rows, (N, ...).
            num_rows: Rows of the whole table.
            dtype: The data type to store, used if it is smaller than that of floating-point rows.
        """
        order = sorted(range(1, batch.ndim), key=batch.stride, reverse=True)
        is_smaller = dtype is not None and dtype.itemsize < batch.dtype.itemsize
        stored = dtype if is_smaller and batch.is_floating_point() else batch.dtype
        names = [str(each).removeprefix("torch.") for each in (stored, batch.dtype)]
        return cls(num_rows, tuple(batch.shape[1:]), tuple(dim - 1 for dim in order), *names)

    @property
    def storage(self) -> torch.dtype:
        """The data type of the stored rows."""
        dtype: torch.dtype = getattr(torch, self.stored_dtype)
        return dtype

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return prod(self.shape) * self.storage.itemsize

    @property
    def num_bytes(self) -> int:
        """Bytes of all rows."""
        return self.num_rows * self.row_bytes

    def pack(self, batch: Tensor) -> Tensor:
        """Rows in their stored form: flat, in memory order, on the CPU."""
        dims = (0, *(dim + 1 for dim in self.order))
        return batch.detach().permute(dims).to("cpu", self.storage).reshape(len(batch), -1)

    def unpack(self, rows: Tensor) -> Tensor:
        """Stored rows with their original shape, data type and memory layout."""
        stored = rows.reshape(len(rows), *(self.shape[dim] for dim in self.order))
        dims = (0, *(self.order.index(dim) + 1 for dim in range(len(self.shape))))
        return stored.permute(dims).to(getattr(torch, self.dtype))


Columns = Mapping[str, Column]


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows in the order in which they were requested, and which of them the table lacks."""

    batch: dict[str, Tensor]
    """The rows by column; a copy that the caller may change."""
    unwritten: list[int]
    """Positions in the batch of rows that have not been written yet."""
    changed: list[int]
    """Positions in the batch of rows whose checksum does not match: they must not be used."""

    @property
    def missing(self) -> list[int]:
        """Positions in the batch of rows that must be computed again."""
        return sorted(self.unwritten + self.changed)


class Table(Protocol):
    """Rows of several columns, read and written by row number."""

    columns: Columns
    where: str
    """The location, for messages."""

    def read(self, numbers: Sequence[int]) -> Rows:
        """Read the rows with these numbers."""

    def write(self, numbers: Sequence[int], batch: Mapping[str, Tensor]) -> None:
        """Write a batch to the rows with these numbers.

        Raises:
            OSError: The disk is full, or writing is not permitted.
        """


class MemoryTable:
    """A table in memory."""

    where = "memory"

    def __init__(self, columns: Columns) -> None:
        self.columns = columns
        num_rows = max(column.num_rows for column in columns.values())
        self._is_written = torch.zeros(num_rows, dtype=torch.bool)
        self._rows = {
            name: torch.empty(column.num_rows, prod(column.shape), dtype=column.storage)
            for name, column in columns.items()
        }

    def read(self, numbers: Sequence[int]) -> Rows:
        """Read the rows with these numbers."""
        chosen = torch.tensor(numbers)
        unwritten = (~self._is_written[chosen]).nonzero().flatten().tolist()
        batch = {n: column.unpack(self._rows[n][chosen]) for n, column in self.columns.items()}
        return Rows(batch, unwritten, [])

    def write(self, numbers: Sequence[int], batch: Mapping[str, Tensor]) -> None:
        """Write a batch to the rows with these numbers."""
        chosen = torch.tensor(numbers)
        for name, column in self.columns.items():
            self._rows[name][chosen] = column.pack(batch[name])
        self._is_written[chosen] = True


def num_bytes(columns: Columns) -> int:
    """Bytes of a table."""
    return sum(column.num_bytes for column in columns.values())

"""Tables of tensors, a row for each picture, and how their rows are kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch
from torch import Tensor


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


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows that were asked for, in that order, and which of them a table does not have."""

    batch: dict[str, Tensor]
    """Of each column; the reader's own."""
    unwritten: list[int]
    """Places in the batch of rows that nobody has written yet."""
    changed: list[int]
    """Places in the batch of rows that are not what was written: they must not be used."""

    @property
    def lacking(self) -> list[int]:
        """Places in the batch of rows that have to be made anew."""
        return sorted(self.unwritten + self.changed)


class Table(Protocol):
    """Columns of rows, read and written by number."""

    columns: Columns
    where: str
    """In words."""

    def read(self, numbers: Sequence[int]) -> Rows:
        """The rows of these numbers."""

    def write(self, numbers: Sequence[int], batch: Mapping[str, Tensor]) -> None:
        """Keep a batch under these numbers.

        Raises:
            OSError: There is no room, or no right to write.
        """


class MemoryTable:
    """A table in memory."""

    where = "memory"

    def __init__(self, columns: Columns) -> None:
        self.columns = columns
        num_rows = max(column.num_rows for column in columns.values())
        self._is_written = torch.zeros(num_rows, dtype=torch.bool)
        self._rows = {
            name: torch.empty(column.num_rows, prod(column.shape), dtype=column.kept)
            for name, column in columns.items()
        }

    def read(self, numbers: Sequence[int]) -> Rows:
        """The rows of these numbers."""
        chosen = torch.tensor(numbers)
        unwritten = (~self._is_written[chosen]).nonzero().flatten().tolist()
        batch = {n: column.unpack(self._rows[n][chosen]) for n, column in self.columns.items()}
        return Rows(batch, unwritten, [])

    def write(self, numbers: Sequence[int], batch: Mapping[str, Tensor]) -> None:
        """Keep a batch under these numbers."""
        chosen = torch.tensor(numbers)
        for name, column in self.columns.items():
            self._rows[name][chosen] = column.pack(batch[name])
        self._is_written[chosen] = True


def num_bytes(columns: Columns) -> int:
    """The room that a table takes."""
    return sum(column.num_bytes for column in columns.values())

"""Where tables are kept: in memory, or in files that all processes of a machine fill together."""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol
from uuid import uuid4

from lightning.pytorch import Trainer
from torch import Tensor

from lit_finetune.prefix_store import (
    Columns,
    FileWriter,
    MemoryWriter,
    Table,
    abandon_files,
    begin_files,
    finish_files,
    open_files,
    part_of,
)


class Home(Protocol):
    """A place for a table: begun, written to, and then whole."""

    where: str
    """In words."""
    trouble: OSError | None
    """Why nothing can be kept there."""

    def begin(self, trainer: Trainer, columns: Columns) -> bool:
        """Make room; whether there is."""

    def write(self, numbers: Sequence[int], batch: Mapping[str, Tensor]) -> None:
        """Keep a batch under these numbers."""

    def finish(self, trainer: Trainer) -> Table | None:
        """The table, when all processes are done; None if one of them could not write."""

    def abandon(self) -> None:
        """Throw away what was begun."""


class InMemory:
    """The memory of this process."""

    where = "memory"
    trouble: OSError | None = None

    def begin(self, trainer: Trainer, columns: Columns) -> bool:
        """Make room."""
        self._writer = MemoryWriter(columns)
        return True

    def write(self, numbers: Sequence[int], batch: Mapping[str, Tensor]) -> None:
        """Keep a batch under these numbers."""
        self._writer.write(numbers, batch)

    def finish(self, trainer: Trainer) -> Table | None:
        """The table."""
        return self._writer.table()

    def abandon(self) -> None:
        """Nothing is left behind."""


class InFiles:
    """A folder, which is written beside its place; `trouble` says why it cannot be."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.where = str(folder)
        self.trouble: OSError | None = None
        self._lock: BinaryIO | None = None
        self._writer: FileWriter | None = None
        self._columns: Columns = {}

    def begin(self, trainer: Trainer, columns: Columns) -> bool:
        """Make room: the first process of a machine does, and the others join it."""
        token = trainer.strategy.broadcast(uuid4().hex[:8])
        self._part, self._columns = part_of(self.folder, token), columns
        if trainer.local_rank == 0:
            try:
                self._lock = begin_files(self._part, columns)
            except OSError as error:
                self.trouble = error
        if self._all_are_well(trainer):
            try:
                self._writer = FileWriter(self._part, columns)
            except OSError as error:
                self.trouble = error
        return self._all_are_well(trainer)

    def write(self, numbers: Sequence[int], batch: Mapping[str, Tensor]) -> None:
        """Keep a batch under these numbers, unless something is the matter already."""
        if self._writer is None or self.trouble:
            return
        try:
            self._writer.write(numbers, batch)
        except OSError as error:
            self.trouble = error

    def finish(self, trainer: Trainer) -> Table | None:
        """The table, if all processes could write."""
        try:
            if self._writer is not None:
                self._writer.close()
        except OSError as error:
            self.trouble = self.trouble or error
        is_whole = self._all_are_well(trainer)
        try:
            if is_whole and self._lock is not None:
                finish_files(self._part, self._lock, self.folder, self._columns)
        except OSError as error:
            self.trouble = error
        if not is_whole:
            self.abandon()
        trainer.strategy.barrier()
        return found(trainer, self.folder) if is_whole else None

    def abandon(self) -> None:
        """Throw away what was begun."""
        if self._lock is not None:
            abandon_files(self._part, self._lock)

    def _all_are_well(self, trainer: Trainer) -> bool:
        return bool(trainer.strategy.reduce_boolean_decision(self.trouble is None))


def found(trainer: Trainer, folder: Path) -> Table | None:
    """The table in a folder, if all processes find it whole."""
    table = open_files(folder)
    is_there = trainer.strategy.reduce_boolean_decision(table is not None)
    return table if is_there else None


def temporary_folder(trainer: Trainer) -> Path:
    """A folder for this run alone, the same in all processes of a machine."""
    made = tempfile.mkdtemp(prefix="lit_finetune-") if trainer.is_global_zero else ""
    folder = Path(trainer.strategy.broadcast(made))
    if trainer.local_rank == 0:
        folder.mkdir(exist_ok=True)
    return folder


def remove(folder: Path) -> None:
    """Remove a folder; another process may be doing so."""
    shutil.rmtree(folder, ignore_errors=True)

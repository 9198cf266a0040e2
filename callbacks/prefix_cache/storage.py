"""Where tables are kept: in memory, or in files that all processes of a node fill together."""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from errno import EDQUOT, ENOSPC, EROFS
from pathlib import Path
from typing import BinaryIO, Protocol
from uuid import uuid4

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lit_finetune.feature_cache.files import (
    DamagedTableError,
    FileWriter,
    abandon_files,
    begin_files,
    finish_files,
    open_files,
    others_at_work,
    part_of,
)
from lit_finetune.feature_cache.store import Columns, MemoryTable, Table

from .node_ranks import NodeRanks, gathered


class Storage(Protocol):
    """A place for a table: begun, written to, and then whole."""

    where: str
    """In words."""
    trouble: str | None
    """Why nothing can be kept there."""

    def begin(self, trainer: Trainer, columns: Columns) -> bool:
        """Make room; whether there is."""

    def write(self, numbers: Sequence[int], batch: Mapping[str, Tensor]) -> None:
        """Keep a batch under these numbers."""

    def finish(self, trainer: Trainer) -> Table | None:
        """The table, when all processes are done; None if one of them could not write."""

    def abandon(self) -> None:
        """Throw away what was begun."""


class MemoryStorage:
    """The memory of this process."""

    where = "memory"
    trouble: str | None = None

    def begin(self, trainer: Trainer, columns: Columns) -> bool:
        """Make room."""
        self._table = MemoryTable(columns)
        return True

    def write(self, numbers: Sequence[int], batch: Mapping[str, Tensor]) -> None:
        """Keep a batch under these numbers."""
        self._table.write(numbers, batch)

    def finish(self, trainer: Trainer) -> Table | None:
        """The table."""
        return self._table

    def abandon(self) -> None:
        """Nothing is left behind."""


class FileStorage:
    """A folder of this node, written beside its place; `trouble` says why it cannot be.

    Args:
        folder: Of the table, in the end.
        ranks: The first process of the node makes the folder, and the others join it.
    """

    def __init__(self, folder: Path, ranks: NodeRanks) -> None:
        self.folder = folder
        self.where = str(folder)
        self.trouble: str | None = None
        self._is_first = ranks.rank == 0
        self._lock: BinaryIO | None = None
        self._writer: FileWriter | None = None
        self._columns: Columns = {}

    def begin(self, trainer: Trainer, columns: Columns) -> bool:
        """Make room: the first process of a node does, and the others join it."""
        token = trainer.strategy.broadcast(uuid4().hex)
        self._part, self._columns = part_of(self.folder, token), columns
        if others_at_work(self.folder):
            rank_zero_info(
                f"FrozenPrefixCache: another process is writing {self.folder} at the moment. This"
                " run makes its own; the one that ends first stays."
            )
        trainer.strategy.barrier()  # all have looked
        if self._is_first:
            try:
                self._lock = begin_files(self._part, columns)
            except OSError as error:
                self.trouble = _in_words(error)
        if self._all_are_well(trainer):
            try:
                self._writer = FileWriter(self._part, self.folder, columns)
            except OSError as error:
                self.trouble = _in_words(error)
        return self._all_are_well(trainer)

    def write(self, numbers: Sequence[int], batch: Mapping[str, Tensor]) -> None:
        """Keep a batch under these numbers, unless something is the matter already."""
        if self._writer is None or self.trouble:
            return
        try:
            self._writer.write(numbers, batch)
        except OSError as error:
            self.trouble = _in_words(error)

    def finish(self, trainer: Trainer) -> Table | None:
        """The table, if all processes could write."""
        try:
            if self._writer is not None:
                self._writer.close()
        except OSError as error:
            self.trouble = self.trouble or _in_words(error)
        if not self._all_are_well(trainer):
            self.abandon()
            return None
        try:
            if self._lock is not None:
                finish_files(self._part, self._lock, self.folder, self._columns)
        except OSError as error:
            self.trouble = _in_words(error)
        if self._all_are_well(trainer):
            table, self.trouble = found(trainer, self.folder, self._columns)
        else:  # what was written is there still, and of use as long as this run lasts
            rank_zero_info(
                f"FrozenPrefixCache: {self.folder} is kept for this run alone: {self.trouble}."
            )
            place = self._part if self._part.is_dir() else self.folder
            table, self.trouble = found(trainer, self.folder, self._columns, place)
            self.abandon()
        return table

    def abandon(self) -> None:
        """Throw away what was begun; a file that is open can be read still."""
        if self._lock is not None:
            abandon_files(self._part, self._lock)

    def _all_are_well(self, trainer: Trainer) -> bool:
        """Whether no process of the run has trouble; the first that has tells the others."""
        troubles = filter(None, gathered(trainer, self.trouble))
        self.trouble = next(troubles, None)
        return self.trouble is None


def found(
    trainer: Trainer, folder: Path, columns: Columns, place: Path | None = None
) -> tuple[Table | None, str | None]:
    """The table in a folder, if all processes find it whole; else, if one is there, why not."""
    table, problem, is_there = None, None, True
    try:
        table = open_files(folder, columns, place)
    except FileNotFoundError:
        is_there = False
    except DamagedTableError as error:
        problem = str(error)
    except OSError as error:
        problem = f"cannot be read ({_in_words(error)})"
    states = gathered(trainer, (table is not None, is_there, problem))
    if all(is_whole for is_whole, _, _ in states):
        return table, None
    problems = [each for _, _, each in states if each]
    if not problems and any(is_there for _, is_there, _ in states):
        problems = ["is not there for all processes"]
    return None, problems[0] if problems else None


def temporary_folder(trainer: Trainer, ranks: NodeRanks) -> Path:
    """A folder for this run alone, the same in all processes of a node."""
    made = tempfile.mkdtemp(prefix="lit_finetune-") if ranks.rank == 0 else ""
    return Path(gathered(trainer, made)[ranks.first])


def remove(folder: Path) -> None:
    """Remove a folder; another process may be doing so."""
    shutil.rmtree(folder, ignore_errors=True)


def _in_words(error: OSError) -> str:
    """What the system says, in words that name the cause.

    >>> _in_words(PermissionError(13, "Permission denied", "kept"))
    "no permission ([Errno 13] Permission denied: 'kept')"
    >>> _in_words(OSError(28, "No space left on device"))
    'there is no room ([Errno 28] No space left on device)'
    """
    if isinstance(error, PermissionError) or error.errno == EROFS:
        return f"no permission ({error})"
    if error.errno in (ENOSPC, EDQUOT):
        return f"there is no room ({error})"
    return str(error)

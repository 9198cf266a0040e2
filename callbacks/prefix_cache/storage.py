"""Storage of a table: memory, or files that all processes of a node fill together."""

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
    create_files,
    discard_files,
    has_other_writers,
    open_files,
    partial_path,
    publish_files,
)
from lit_finetune.feature_cache.store import Columns, MemoryTable, Table
from lit_finetune.files.permissions import warn_of_open_cache

from .node_ranks import NodeRanks, all_gather


class Storage(Protocol):
    """Where a table is written: `begin`, `write` its rows, `finish`."""

    where: str
    """The location, for messages."""
    problem: str | None
    """Why the table cannot be stored there."""

    def begin(self, trainer: Trainer, columns: Columns) -> bool:
        """Allocate the table; whether that succeeded in all processes."""

    def write(self, numbers: Sequence[int], batch: Mapping[str, Tensor]) -> None:
        """Write a batch to the rows with these numbers."""

    def finish(self, trainer: Trainer) -> Table | None:
        """The complete table, when all processes are done; None if one of them failed."""

    def abandon(self) -> None:
        """Remove the incomplete table."""


class MemoryStorage:
    """The memory of this process."""

    where = "memory"
    problem: str | None = None

    def begin(self, trainer: Trainer, columns: Columns) -> bool:
        """Allocate the table."""
        self._table = MemoryTable(columns)
        return True

    def write(self, numbers: Sequence[int], batch: Mapping[str, Tensor]) -> None:
        """Write a batch to the rows with these numbers."""
        self._table.write(numbers, batch)

    def finish(self, trainer: Trainer) -> Table | None:
        """The table."""
        return self._table

    def abandon(self) -> None:
        """Nothing to remove."""


class FileStorage:
    """A folder of this node, written under a temporary name.

    Args:
        folder: The final path of the table.
        ranks: The first process of the node creates the files.
    """

    def __init__(self, folder: Path, ranks: NodeRanks) -> None:
        self.folder = folder
        self.where = str(folder)
        self.problem: str | None = None
        self._is_first = ranks.rank == 0
        self._lock: BinaryIO | None = None
        self._writer: FileWriter | None = None
        self._columns: Columns = {}

    def begin(self, trainer: Trainer, columns: Columns) -> bool:
        """Allocate the table: the first process of a node creates the files, all open them."""
        token = trainer.strategy.broadcast(uuid4().hex)
        self._part, self._columns = partial_path(self.folder, token), columns
        if has_other_writers(self.folder):
            rank_zero_info(
                f"FrozenPrefixCache: another process is writing {self.folder} at the moment. This"
                " run makes its own; the one that ends first stays."
            )
        trainer.strategy.barrier()  # before any creates files
        if self._is_first:
            try:
                self._lock = create_files(self._part, columns)
            except OSError as error:
                self.problem = describe_error(error)
        if self._all_succeeded(trainer):
            try:
                self._writer = FileWriter(self._part, self.folder, columns)
            except OSError as error:
                self.problem = describe_error(error)
        return self._all_succeeded(trainer)

    def write(self, numbers: Sequence[int], batch: Mapping[str, Tensor]) -> None:
        """Write a batch to the rows with these numbers, unless an earlier write failed."""
        if self._writer is None or self.problem:
            return
        try:
            self._writer.write(numbers, batch)
        except OSError as error:
            self.problem = describe_error(error)

    def finish(self, trainer: Trainer) -> Table | None:
        """The complete table; None if a process failed."""
        try:
            if self._writer is not None:
                self._writer.close()
        except OSError as error:
            self.problem = self.problem or describe_error(error)
        if not self._all_succeeded(trainer):
            self.abandon()
            return None
        try:
            if self._lock is not None:
                publish_files(self._part, self._lock, self.folder, self._columns)
        except OSError as error:
            self.problem = describe_error(error)
        if self._all_succeeded(trainer):
            table, self.problem = find_table(trainer, self.folder, self._columns)
        else:  # the written rows can be used as long as this run lasts
            rank_zero_info(
                f"FrozenPrefixCache: {self.folder} is kept for this run alone: {self.problem}."
            )
            path = self._part if self._part.is_dir() else self.folder
            table, self.problem = find_table(trainer, self.folder, self._columns, path)
            self.abandon()
        return table

    def abandon(self) -> None:
        """Remove the incomplete table; this process can still read its open file."""
        if self._lock is not None:
            discard_files(self._part, self._lock)

    def _all_succeeded(self, trainer: Trainer) -> bool:
        """Whether no process has a problem; otherwise `problem` is that of the first."""
        problems = filter(None, all_gather(trainer, self.problem))
        self.problem = next(problems, None)
        return self.problem is None


def find_table(
    trainer: Trainer, folder: Path, columns: Columns, path: Path | None = None
) -> tuple[Table | None, str | None]:
    """The table in a folder if it is complete for all processes; otherwise the problem with it."""
    if trainer.is_global_zero and path is None:
        warn_of_open_cache(folder.parent)
    table, problem, is_there = None, None, True
    try:
        table = open_files(folder, columns, path)
    except FileNotFoundError:
        is_there = False
    except DamagedTableError as error:
        problem = str(error)
    except OSError as error:
        problem = f"cannot be read ({describe_error(error)})"
    states = all_gather(trainer, (table is not None, is_there, problem))
    if all(is_complete for is_complete, _, _ in states):
        return table, None
    problems = [each for _, _, each in states if each]
    if not problems and any(is_there for _, is_there, _ in states):
        problems = ["is not there for all processes"]
    return None, problems[0] if problems else None


def shared_temporary_folder(trainer: Trainer, ranks: NodeRanks) -> Path:
    """A new temporary folder, the same for all processes of a node."""
    folder = tempfile.mkdtemp(prefix="lit_finetune-") if ranks.rank == 0 else ""
    return Path(all_gather(trainer, folder)[ranks.first])


def remove(folder: Path) -> None:
    """Remove a folder; another process may do the same."""
    shutil.rmtree(folder, ignore_errors=True)


def describe_error(error: OSError) -> str:
    """The message of an error of the operating system, with its cause first.

    >>> describe_error(PermissionError(13, "Permission denied", "kept"))
    "no permission ([Errno 13] Permission denied: 'kept')"
    >>> describe_error(OSError(28, "No space left on device"))
    'there is no room ([Errno 28] No space left on device)'
    """
    if isinstance(error, PermissionError) or error.errno == EROFS:
        return f"no permission ({error})"
    if error.errno in (ENOSPC, EDQUOT):
        return f"there is no room ({error})"
    return str(error)

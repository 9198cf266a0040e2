"""The tables of block inputs of one loader: found, computed, read."""

import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lit_finetune.feature_cache.key import stamp
from lit_finetune.feature_cache.store import Columns, Table, num_bytes
from lit_finetune.splitting.split import PrefixOutput

from .config import CacheConfig
from .fill import LABELS, Base, H, compute_rows, fill, first_samples, fit_in_memory, make_columns
from .folders import TableFolders
from .run import Run
from .samples import LoaderSamples, ViewBatch
from .storage import FileStorage, MemoryStorage, Storage, find_table

logger = logging.getLogger(__name__)  # for warnings of any process, not of rank 0 alone


class PrefixTables:
    """Tables of block inputs for the images of one loader.

    Args:
        samples: The images of the loader.
        config: The data type and location of the tables.
    """

    def __init__(self, samples: LoaderSamples, config: CacheConfig) -> None:
        self._samples = samples
        self._config = config
        self._folders = TableFolders(samples, config)
        self._tables: dict[str, tuple[tuple[int, ...], Table]] = {}
        self._failed: set[str] = set()
        self._messages_shown: set[str] = set()
        self._first: tuple[Tensor, Tensor] | None = None

    def first_images(self, run: Run) -> Tensor:
        """Two images, (2, C, H, W), on the device.

        Raises:
            ValueError: The loader gives something that cannot be cached.
        """
        return self._first_samples(run)[0]

    def batch(self, run: Run, name: str, indices: Sequence[int]) -> list[Any]:
        """The inputs of a block and the labels, for the images with these indices."""
        view = run.trainer.current_epoch % max(1, self._samples.views)
        h, labels = self._read(run, name, [(view, index) for index in indices])
        return [PrefixOutput(h, name, self._image_shape(run)), labels]

    def prepare(self, run: Run, name: str, later: Sequence[str]) -> bool:
        """Find or compute the table of a block; whether there is one now.

        Args:
            run: Its blocks before this one are frozen.
            name: The block.
            later: Earlier blocks of the network whose tables later phases will need.
        """
        self._drop_outdated(run, {name, *later})
        if name in self._failed:
            return False
        if self._has(run, name):
            return True
        base = self._base(run, name)
        others = [] if base else [other for other in later if not self._has(run, other)]
        self._compute(run, [*others, name], base)
        return name in self._tables

    def close(self) -> None:
        """Free the memory and the files that later runs do not share."""
        self._tables.clear()
        self._folders.close()

    def _read(self, run: Run, name: str, batch: ViewBatch) -> list[Tensor]:
        """The rows of a batch; rows that are missing or damaged are computed again."""
        table, numbers = self._tables[name][1], self._samples.row_numbers(batch)
        rows = table.read(numbers)
        if rows.missing:
            if rows.changed and name not in self._messages_shown:
                self._messages_shown.add(name)
                logger.warning(_CHANGED_ROWS, self._describe(name), table.where)
            computed = compute_rows(run, self._samples, name, self._full_batch(batch))
            missing = {column: computed[column][rows.missing] for column in rows.batch}
            with suppress(OSError):  # a read-only folder: the rows are computed each time
                table.write([numbers[i] for i in rows.missing], missing)
            for key, column in table.columns.items():
                rows.batch[key][rows.missing] = column.unpack(column.pack(missing[key]))
        return [rows.batch[H], rows.batch[LABELS]]

    def _full_batch(self, batch: ViewBatch) -> ViewBatch:
        """The batch at the size of the first pass, filled up with its own first images."""
        size = len(batch)
        if not self._samples.has_fixed_batches:
            size = max(self._samples.batch_size, size)
        return [batch[i % len(batch)] for i in range(size)]

    def _drop_outdated(self, run: Run, needed: set[str]) -> None:
        """Drop the tables of changed weights, and those behind all blocks that are needed."""
        position = run.names().index
        last = max(map(position, needed))
        for name, (old_stamp, _) in list(self._tables.items()):
            if stamp(run.tensors(name)) != old_stamp or position(name) > last:
                del self._tables[name]

    def _has(self, run: Run, name: str) -> bool:
        """Whether there is a table, in memory or in files of this or an earlier run."""
        if name not in self._tables and (
            folder := self._folders.shared_folder(run, name, self._first_samples(run))
        ):
            columns = self._columns(run, [name])[name]
            table, problem = find_table(run.trainer, folder, columns)
            if table is not None:
                self._tables[name] = stamp(run.tensors(name)), table
                _log(f"{self._describe(name)} is in {folder}.")
            elif (reason := _why_computed_again(name, folder, problem)) and (
                reason not in self._messages_shown
            ):
                self._messages_shown.add(reason)
                _log(reason)
        return name in self._tables

    def _base(self, run: Run, name: str) -> Base | None:
        """The last earlier block whose input is stored without loss of precision."""
        exact = [
            block.name
            for block in run.blocks_before(name)
            if block.name in self._tables and _is_exact(self._tables[block.name][1])
        ]
        if not exact:
            return None
        return Base(exact[-1], lambda batch: self._read(run, exact[-1], batch))

    def _compute(self, run: Run, names: list[str], base: Base | None) -> None:
        """Fill the tables of these blocks, in the order of the network, in one pass."""
        columns = self._columns(run, names)
        storages: dict[str, Storage] = {}
        for name in fit_in_memory(names, columns, self._config.memory_limit):
            if storage := self._open_storage(run, name, columns[name]):
                storages[name] = storage
        try:
            with run.no_grad():
                batches, shape = self._batches(run), self._image_shape(run)
                fill(run, self._samples, storages, batches, base, shape)
        except BaseException:
            for storage in storages.values():
                storage.abandon()
            raise
        for name, storage in storages.items():
            table = storage.finish(run.trainer)
            if table is not None:
                self._tables[name] = stamp(run.tensors(name)), table
            else:
                _log(f"not in {storage.where}: {storage.problem}.")
        if names[-1] not in self._tables:
            self._failed.add(names[-1])
            _log(
                f"{self._describe(names[-1])} is not kept, for the reason above: the pictures are"
                " used."
            )

    def _batches(self, run: Run) -> list[tuple[ViewBatch, int]]:
        """The batches that this process computes: all, or its share of the node's table."""
        batches = self._samples.batches()
        if self._samples.has_fixed_batches:
            return batches
        ranks = self._folders.ranks(run)
        return batches[ranks.rank :: ranks.size]

    def _open_storage(self, run: Run, name: str, columns: Columns) -> Storage | None:
        """The storage of a table: files or memory; None where neither has room."""
        size = num_bytes(columns)
        in_memory = run.trainer.world_size == 1 and size <= self._config.memory_limit
        storages: list[Storage] = [MemoryStorage()] if in_memory else []
        if self._config.cache_dir is not None or not in_memory:
            folder = self._folders.folder(run, name, self._first_samples(run))
            storages.insert(0, FileStorage(folder, self._folders.ranks(run)))
        for storage in storages:
            _log(f"{self._describe(name)} takes {size / 2**20:,.1f} MiB in {storage.where}.")
            if storage.begin(run.trainer, columns):
                return storage
            _log(f"not in {storage.where}: {storage.problem}.")
            storage.abandon()
        return None

    def _columns(self, run: Run, names: list[str]) -> dict[str, Columns]:
        first, num_rows = self._first_samples(run), self._samples.num_rows
        return make_columns(run, names, first, num_rows, self._config.dtype)

    def _first_samples(self, run: Run) -> tuple[Tensor, Tensor]:
        if self._first is None:
            self._first = first_samples(run, self._samples)
        return self._first

    def _image_shape(self, run: Run) -> tuple[int, ...]:
        return tuple(self.first_images(run).shape[1:])

    def _describe(self, name: str) -> str:
        samples = self._samples
        views = f"{samples.views} views of each of " if samples.views > 1 else ""
        return f"the input of `{name}` for {views}{samples.count} {samples.part} pictures"


def _why_computed_again(name: str, folder: Path, problem: str | None) -> str | None:
    """The reason to report; None where this is the first table of the block in the folder."""
    if problem:
        return f"{folder} {problem}: it is computed again."
    if not any(path.name != folder.name for path in folder.parent.glob(f"{name}-*")):
        return None
    return (
        f"{folder.parent} has tables of `{name}`, but none for these weights, pictures, transforms"
        " and settings: a new one is computed."
    )


_CHANGED_ROWS = (
    "FrozenPrefixCache: %s: rows in %s do not match their checksums; the file was changed, cut"
    " short or damaged. These rows are computed again from their pictures."
)


def _is_exact(table: Table) -> bool:
    return table.columns[H].stored_dtype == table.columns[H].dtype


def _log(message: str) -> None:
    rank_zero_info(f"FrozenPrefixCache: {message}")

"""What enters blocks, of the pictures of one loader: made once, kept, and found again."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from tqdm.auto import tqdm

from lit_finetune.feature_cache.key import data_digest, network_digest, stamp
from lit_finetune.feature_cache.store import Column, Columns, Table, num_bytes
from lit_finetune.files.fingerprint import digest
from lit_finetune.splitting.split import PrefixOutput

from ..checkpoint import LastCheckpoint
from .frozen_network import Run
from .node_ranks import NodeRanks, node_ranks
from .samples import Batch, Pictures
from .storage import FileStorage, MemoryStorage, Storage, found, remove, temporary_folder

logger = logging.getLogger(__name__)  # not of the first process alone

_FORMAT = 2
"""Changes when tables are made in another way."""
H, LABELS = "h", "labels"


@dataclass(frozen=True, slots=True)
class Keeping:
    """How tables are kept."""

    dtype: torch.dtype
    cache_dir: Path | None
    memory_limit: int


class PrefixTables:
    """Tables of what enters blocks, for the pictures of one loader.

    Args:
        pictures: Of the loader.
        part: `training` or `validation`.
        views: How many of each picture; 0 for the one that a dataset without chance gives.
        keeping: How they are kept.
    """

    def __init__(self, pictures: Pictures, part: str, views: int, keeping: Keeping) -> None:
        self.pictures = pictures
        self.part = part
        self.views = views
        self.keeping = keeping
        self._tables: dict[str, tuple[tuple[int, ...], Table]] = {}
        self._given_up: set[str] = set()
        self._temporary: Path | None = None
        self._ranks: NodeRanks | None = None
        self._told: set[str] = set()
        self._data: str | None = None
        self._probe: tuple[Tensor, Tensor] | None = None

    def probe(self, run: Run) -> Tensor:
        """The first pictures, on the device.

        Raises:
            ValueError: They are not what a cache can be made of.
        """
        return self._probed(run)[0]

    def batch(self, run: Run, name: str, indices: Sequence[int]) -> list[Any]:
        """What enters a block, of the pictures of these numbers, with their labels."""
        view = run.trainer.current_epoch % max(1, self.views)
        rows = self._read(run, name, [(view, index) for index in indices])
        return [PrefixOutput(rows[H], name, tuple(self.probe(run).shape[1:])), rows[LABELS]]

    def prepare(self, run: Run, name: str, ahead: Sequence[str]) -> bool:
        """Have a table of what enters a block; whether there is one now.

        Args:
            run: Its blocks before this one stand still.
            name: Of the block.
            ahead: Earlier blocks, of which tables will be needed later.
        """
        self._forget_all_but(run, {name, *ahead})
        if name in self._given_up:
            return False
        if self._has(run, name):
            return True
        base = self._base(run, name)
        missing = [other for other in ahead if not self._has(run, other)] if base is None else []
        self._make(run, [*missing, name], base)
        return name in self._tables

    def close(self) -> None:
        """Give back the room that is not shared with later runs."""
        self._tables.clear()
        if self._temporary is not None:
            remove(self._temporary)
        self._temporary = None

    def _read(self, run: Run, name: str, batch: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        """The rows of views of pictures; those that a table does not have are made anew."""
        table, numbers = self._tables[name][1], self._numbers(batch)
        rows = table.read(numbers)
        if not rows.lacking:
            return rows.batch
        if rows.changed and name not in self._told:
            self._told.add(name)
            _warn_of_changes(self._what(name), table)
        size = len(batch) if self._has_own_batches else max(self.pictures.batch_size, len(batch))
        made = _made_rows(run, self.pictures, name, [batch[i % len(batch)] for i in range(size)])
        lacking = {column: made[column][rows.lacking] for column in rows.batch}
        with suppress(OSError):  # a folder that cannot be written to: they are made each time
            table.write([numbers[place] for place in rows.lacking], lacking)
        for name, column in table.columns.items():
            rows.batch[name][rows.lacking] = column.unpack(column.pack(lacking[name]))
        return rows.batch

    def _numbers(self, batch: Sequence[tuple[int, int]]) -> list[int]:
        """The rows of views of pictures."""
        return [view * self.pictures.count + number for view, number in batch]

    def _forget_all_but(self, run: Run, names: set[str]) -> None:
        for name, (seen, _) in list(self._tables.items()):
            if stamp(run.tensors(name)) != seen:
                del self._tables[name]
        depth = run.names().index
        latest = max(map(depth, names))
        for name in set(self._tables) - names:
            if depth(name) > latest:
                del self._tables[name]

    def _has(self, run: Run, name: str) -> bool:
        """Whether there is a table, in memory or in files of this or an earlier run."""
        if name not in self._tables and (folder := self._shared_folder(run, name)):
            with run.running():
                columns = self._columns(run, [name])[name]
            table, problem = found(run.trainer, folder, columns)
            if table is not None:
                self._tables[name] = stamp(run.tensors(name)), table
                rank_zero_info(f"FrozenPrefixCache: {self._what(name)} is in {folder}.")
            else:
                self._tell(_why_anew(name, folder, problem))
        return name in self._tables

    def _base(self, run: Run, name: str) -> str | None:
        """The latest earlier block of which what enters it is known to the last bit."""
        names = run.names()
        exact = [
            other
            for other in names[: names.index(name)]
            if other in self._tables and _is_exact(self._tables[other][1])
        ]
        return exact[-1] if exact else None

    def _make(self, run: Run, names: list[str], base: str | None) -> None:
        """Fill tables for these blocks, in the order of the network, in one pass."""
        with run.running():
            columns = self._columns(run, names)
        storages: dict[str, Storage] = {}
        for name in _affordable(names, columns, self.keeping.memory_limit):
            if home := self._settle(run, name, columns[name]):
                storages[name] = home
        try:
            with run.running():
                self._fill(run, storages, base)
        except BaseException:
            for home in storages.values():
                home.abandon()
            raise
        for name, home in storages.items():
            table = home.finish(run.trainer)
            if table is not None:
                self._tables[name] = stamp(run.tensors(name)), table
            else:
                rank_zero_info(f"FrozenPrefixCache: not in {home.where}: {home.trouble}.")
        if names[-1] not in self._tables:
            self._given_up.add(names[-1])
            rank_zero_info(
                f"FrozenPrefixCache: {self._what(names[-1])} is not kept, for the reason above:"
                " the pictures are used."
            )

    def _settle(self, run: Run, name: str, columns: Columns) -> Storage | None:
        """Where a table is kept; None where there is no room at all."""
        size = num_bytes(columns)
        in_memory = run.trainer.world_size == 1 and size <= self.keeping.memory_limit
        storages: list[Storage] = [MemoryStorage()] if in_memory else []
        if self.keeping.cache_dir is not None or not in_memory:
            storages.insert(0, FileStorage(self._folder(run, name), self._of_node(run)))
        for home in storages:
            rank_zero_info(
                f"FrozenPrefixCache: {self._what(name)} takes {size / 2**20:,.1f} MiB in"
                f" {home.where}."
            )
            if home.begin(run.trainer, columns):
                return home
            rank_zero_info(f"FrozenPrefixCache: not in {home.where}: {home.trouble}.")
            home.abandon()
        return None

    def _columns(self, run: Run, names: list[str]) -> dict[str, Columns]:
        """What the tables of these blocks hold, told from a few pictures."""
        images, labels = self._probed(run)
        columns: dict[str, Columns] = {}
        num_rows = self.pictures.count * max(1, self.views)
        for name in names:
            h = run.module.forward_prefix(images, name)
            columns[name] = {
                H: Column.of(h, num_rows, self.keeping.dtype),
                LABELS: Column.of(labels, num_rows),
            }
        return columns

    def _chain(
        self, run: Run, images: Tensor, names: Sequence[str], base: tuple[str, Tensor] | None
    ) -> Iterator[tuple[str, Tensor]]:
        """What enters each of these blocks, one after the other."""
        shape = tuple(self.probe(run).shape[1:])
        for name in names:
            if base is None:
                h = run.module.forward_prefix(images, name)
            else:
                h = run.between(base[1], base[0], name, shape)
            base = name, h
            yield base

    def _fill(self, run: Run, storages: dict[str, Storage], base: str | None) -> None:
        """One pass over the pictures, or over what is known of them; each process its share."""
        if not storages:
            return
        batches = self._pass()
        if not self._has_own_batches:  # each process its share of the node's table
            ranks = self._of_node(run)
            batches = batches[ranks.rank :: ranks.size]
        loader: Any = None if base else self.pictures.load([batch for batch, _ in batches])
        loaded = iter(loader) if loader is not None else iter([])
        is_shown = run.trainer.is_global_zero and run.trainer.progress_bar_callback is not None
        bar = tqdm(batches, f"Keeping {self.part} pictures", disable=not is_shown, leave=False)
        for batch, size in bar:
            _end_if_interrupted(run)
            if base is None:
                images, labels = run.on_device(next(loaded))
            else:
                known = self._read(run, base, batch)
                images, labels = run.on_device([known[H], known[LABELS]])
            start = (base, images) if base else None
            for name, h in self._chain(run, images, list(storages), start):
                made = {H: h[:size], LABELS: labels[:size]}
                storages[name].write(self._numbers(batch[:size]), made)

    def _pass(self) -> list[tuple[Batch, int]]:
        """The batches of a pass over all views, and how many of each count.

        What a network makes of a picture may hang on the size of the batch in its last bits, and
        so batches are of the size that a run has: those of a loader of fixed order are its own,
        and the others are filled up.
        """
        views = range(max(1, self.views))
        if self._has_own_batches:
            own = self.pictures.own_batches()
            return [([(view, n) for n in batch], len(batch)) for view in views for batch in own]
        return [batch for view in views for batch in self.pictures.filled_batches(view)]

    def _tell(self, message: str | None) -> None:
        if message and message not in self._told:
            self._told.add(message)
            rank_zero_info(f"FrozenPrefixCache: {message}")

    @property
    def _has_own_batches(self) -> bool:
        return self.pictures.has_fixed_order or self.part == "validation"

    def _of_node(self, run: Run) -> NodeRanks:
        if self._ranks is None:
            self._ranks = node_ranks(run.trainer)
        return self._ranks

    def _probed(self, run: Run) -> tuple[Tensor, Tensor]:
        if self._probe is None:
            if self.views == 0 and self.pictures.vary():
                raise ValueError(_VARIED.format(part=self.part))
            self._probe = _first_pictures(run, self.pictures, self.part)
        return self._probe

    def _what(self, name: str) -> str:
        views = f" {self.views} views of each of" if self.views > 1 else ""
        return f"what enters `{name}` of{views} {self.pictures.count} {self.part} pictures"

    def _folder(self, run: Run, name: str) -> Path:
        """Where a table goes: a folder of later runs too, or one of this run alone."""
        shared = self._shared_folder(run, name)
        if shared is not None:
            return shared
        if self._temporary is None:
            self._temporary = temporary_folder(run.trainer, self._of_node(run))
        return self._temporary / f"{self.part}-{name}"

    def _shared_folder(self, run: Run, name: str) -> Path | None:
        """Where later runs look for it; None where nobody can tell whether it is the same."""
        if self.keeping.cache_dir is None:
            return None
        if self._data is None:
            self._data = data_digest(self.pictures.loader.dataset) or ""
        if not self._data:
            return None
        images, labels = self._probed(run)
        key = digest(
            [_FORMAT, torch.__version__, name, self.part, self.views, str(self.keeping.dtype)],
            [run.trainer.precision, images.device.type, self.pictures.batch_size],
            [run.module.hparams.get("channels_last"), type(run.module.backbone).__qualname__],
            [self._data, images, labels, network_digest(run.module.backbone, run.tensors(name))],
        )
        node = f"-{run.trainer.node_rank}" if self._of_node(run).num_nodes > 1 else ""
        return self.keeping.cache_dir / f"{name}-{key}{node}"


def _end_if_interrupted(run: Run) -> None:
    callbacks: list[Callback] = run.trainer.callbacks  # type: ignore[attr-defined]  # by a connector
    for callback in callbacks:
        if isinstance(callback, LastCheckpoint):
            callback.end_early(run.trainer)


def _affordable(names: list[str], columns: Mapping[str, Columns], limit: int) -> list[str]:
    """The block that is needed now, and as many of those that will be as there is room for."""
    *ahead, now = names
    room = limit - num_bytes(columns[now])
    kept = [now]
    for name in reversed(ahead):  # the nearest are needed first
        room -= num_bytes(columns[name])
        if room < 0:
            break
        kept.insert(0, name)
    return kept


def _made_rows(run: Run, pictures: Pictures, name: str, batch: Batch) -> dict[str, Tensor]:
    """What enters a block of views of pictures, as the first pass makes it."""
    with run.running():
        images, labels = run.on_device(next(iter(pictures.load([batch], in_workers=False))))
        return {H: run.module.forward_prefix(images, name), LABELS: labels}


def _first_pictures(run: Run, pictures: Pictures, part: str) -> tuple[Tensor, Tensor]:
    """Two pictures with their labels, on the device.

    Raises:
        ValueError: The loader gives something else.
    """
    first = [(0, number % pictures.count) for number in range(2)]
    batch = next(iter(pictures.load([first], in_workers=False)))
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ValueError(
            "FrozenPrefixCache needs batches of (images, labels), but the loader for"
            f" {part} gives a {type(batch).__name__}."
        )
    images, labels = run.on_device(batch)
    return images, labels


def _warn_of_changes(what: str, table: Table) -> None:
    """In whichever process it is seen."""
    logger.warning(
        "FrozenPrefixCache: of %s, rows in %s are not what was written there: the file was changed,"
        " cut short or damaged. They are made anew from their pictures.",
        what,
        table.where,
    )


def _why_anew(name: str, folder: Path, problem: str | None) -> str | None:
    """Why a table is made anew, where that is worth telling."""
    if problem:
        return f"{folder} {problem}: it is made anew."
    if not any(path.name != folder.name for path in folder.parent.glob(f"{name}-*")):
        return None
    return (
        f"{folder.parent} has tables of `{name}`, but none of these weights, pictures, transforms"
        " and settings: a new one is made."
    )


_VARIED = (
    "FrozenPrefixCache would show the network each {part} picture in one and the same form, but"
    " the dataset varies its pictures at random. Say how many forms of each to keep with"
    " `views` (1 for one), or leave out the augmentation, as with `train_augmentation: none`."
)


def _is_exact(table: Table) -> bool:
    return table.columns[H].dtype == table.columns[H].given

"""What enters blocks, of the pictures of one loader: made once, kept, and found again."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from tqdm.auto import tqdm

from lit_finetune.blocks import Block
from lit_finetune.classifier import FinetuneClassifier
from lit_finetune.describing import digest
from lit_finetune.prefix_key import data_digest, network_digest, prefix_tensors, stamp
from lit_finetune.prefix_store import Column, Columns, Table, num_bytes
from lit_finetune.splitting import PrefixOutput, forward_between

from .prefix_homes import Home, InFiles, InMemory, found, remove, temporary_folder
from .prefix_pictures import Pictures

_FORMAT = 1
"""Changes when tables are made in another way."""
H, LABELS = "h", "labels"


@dataclass(frozen=True, slots=True)
class Keeping:
    """How tables are kept."""

    dtype: torch.dtype
    cache_dir: Path | None
    memory_limit: int


@dataclass(slots=True)
class Run:
    """A run, and the network that it trains."""

    trainer: Trainer
    module: FinetuneClassifier
    blocks: list[Block] = field(init=False)

    def __post_init__(self) -> None:
        self.blocks = self.module.blocks

    def names(self) -> list[str]:
        """Of the blocks, from the input to the head."""
        return [block.name for block in self.blocks]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """What the blocks before the one of this name hold."""
        return prefix_tensors(self.module, self.blocks[: self.names().index(name)])

    def on_device(self, batch: Any) -> list[Any]:
        """A batch as a step is given it."""
        batch = self.trainer.precision_plugin.convert_input(batch)
        moved: list[Any] = self.trainer.strategy.batch_to_device(batch, dataloader_idx=0)
        return moved

    def between(self, h: Tensor, start: str, upto: str, image_shape: tuple[int, ...]) -> Tensor:
        """What enters a block, from what enters an earlier one."""
        network, head_name = self.module.backbone, self.module.head_name
        options: dict[str, Any] = {"head_name": head_name, "image_shape": image_shape}
        return forward_between(network, h, start, upto, **options)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the network as a step does, without a trace on what is drawn later."""
        precision = self.trainer.precision_plugin.forward_context()
        with isolate_rng(), torch.inference_mode(False), torch.no_grad(), precision:
            yield


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
        rows = self._tables[name][1].read([view * self.pictures.count + i for i in indices])
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
            table = found(run.trainer, folder)
            if table is not None:
                self._tables[name] = stamp(run.tensors(name)), table
                rank_zero_info(f"FrozenPrefixCache: {self._what(name)} is in {folder}.")
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
        homes: dict[str, Home] = {}
        for name in self._affordable(names, columns):
            if home := self._settle(run, name, columns[name]):
                homes[name] = home
        try:
            with run.running():
                self._fill(run, homes, base)
        except BaseException:
            for home in homes.values():
                home.abandon()
            raise
        for name, home in homes.items():
            table = home.finish(run.trainer)
            if table is not None:
                self._tables[name] = stamp(run.tensors(name)), table
        if names[-1] not in self._tables:
            self._given_up.add(names[-1])
            rank_zero_info(
                f"FrozenPrefixCache: there is no room for {self._what(names[-1])}: the pictures"
                " are used."
            )

    def _settle(self, run: Run, name: str, columns: Columns) -> Home | None:
        """Where a table is kept; None where there is no room at all."""
        size = num_bytes(columns)
        in_memory = run.trainer.world_size == 1 and size <= self.keeping.memory_limit
        homes: list[Home] = [InMemory()] if in_memory else []
        if self.keeping.cache_dir is not None or not in_memory:
            homes.insert(0, InFiles(self._folder(run, name)))
        for home in homes:
            rank_zero_info(
                f"FrozenPrefixCache: {self._what(name)} takes {size / 2**20:,.1f} MiB in"
                f" {home.where}."
            )
            if home.begin(run.trainer, columns):
                return home
            rank_zero_info(f"FrozenPrefixCache: not in {home.where}: {home.trouble}.")
            home.abandon()
        return None

    def _affordable(self, names: list[str], columns: dict[str, Columns]) -> list[str]:
        """The block that is needed now, and as many of those that will be as there is room for."""
        *ahead, now = names
        room = self.keeping.memory_limit - num_bytes(columns[now])
        kept = [now]
        for name in reversed(ahead):  # the nearest are needed first
            room -= num_bytes(columns[name])
            if room < 0:
                break
            kept.insert(0, name)
        return kept

    def _columns(self, run: Run, names: list[str]) -> dict[str, Columns]:
        """What the tables of these blocks hold, told from a few pictures."""
        images, labels = self._probed(run)
        found: dict[str, Columns] = {}
        num_rows = self.pictures.count * max(1, self.views)
        for name, h in self._chain(run, images, names, None):
            found[name] = {
                H: Column.of(h, num_rows, self.keeping.dtype),
                LABELS: Column.of(labels, num_rows),
            }
        return found

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

    def _fill(self, run: Run, homes: dict[str, Home], base: str | None) -> None:
        """One pass over the pictures, or over what is known of them; each process its share."""
        if not homes:
            return
        batches = self._batches(run)
        rows = [[view * self.pictures.count + number for view, number in b] for b, _ in batches]
        loader: Any = None if base else self.pictures.load([batch for batch, _ in batches])
        loaded = iter(loader) if loader is not None else iter([])
        is_shown = run.trainer.is_global_zero and run.trainer.progress_bar_callback is not None
        bar = tqdm(batches, f"Keeping {self.part} pictures", disable=not is_shown, leave=False)
        for place, (_, size) in enumerate(bar):
            if base is None:
                images, labels = run.on_device(next(loaded))
                known = None
            else:
                known = self._tables[base][1].read(rows[place])
                images, labels = run.on_device([known[H], known[LABELS]])
            start = (base, images) if base else None
            for name, h in self._chain(run, images, list(homes), start):
                batch = {H: h[:size], LABELS: labels[:size]}
                homes[name].write(rows[place][:size], batch)

    def _batches(self, run: Run) -> list[tuple[list[tuple[int, int]], int]]:
        """The views of each batch, and how many of them count; this process's share.

        What a network makes of a picture may hang on the size of the batch in its last bits, and
        so batches are of the size that a run has: those of a loader of fixed order are its own,
        and the others are filled up.
        """
        count, size = self.pictures.count, self.pictures.batch_size
        if self.pictures.has_fixed_order or self.part == "validation":
            own = self.pictures.own_batches()
            return [
                ([(view, number) for number in batch], len(batch))
                for view in range(max(1, self.views))
                for batch in own
            ]
        batches = []
        for view in range(max(1, self.views)):
            for first in range(0, count, size):
                numbers = [number % count for number in range(first, first + size)]
                batches.append(([(view, n) for n in numbers], min(size, count - first)))
        return batches[run.trainer.global_rank :: run.trainer.world_size]

    def _probed(self, run: Run) -> tuple[Tensor, Tensor]:
        if self._probe is None:
            if self.views == 0 and self.pictures.vary():
                raise ValueError(_VARIED.format(part=self.part))
            first = [(0, number % self.pictures.count) for number in range(2)]
            batch = next(iter(self.pictures.load([first], in_workers=False)))
            if not isinstance(batch, tuple | list) or len(batch) != 2:
                raise ValueError(
                    "FrozenPrefixCache needs batches of (images, labels), but the loader for"
                    f" {self.part} gives a {type(batch).__name__}."
                )
            images, labels = run.on_device(batch)
            self._probe = images, labels
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
            self._temporary = temporary_folder(run.trainer)
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
        node = f"-{run.trainer.node_rank}" if run.trainer.num_nodes > 1 else ""
        return self.keeping.cache_dir / f"{name}-{key}{node}"


_VARIED = (
    "FrozenPrefixCache would show the network each {part} picture in one and the same form, but"
    " the dataset varies its pictures at random. Say how many forms of each to keep with"
    " `views` (1 for one), or leave out the augmentation, as with `train_augmentation: none`."
)


def _is_exact(table: Table) -> bool:
    return table.columns[H].dtype == table.columns[H].given

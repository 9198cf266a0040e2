"""Compute the inputs of blocks for all images in one pass, and write them to tables."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor
from tqdm.auto import tqdm

from lit_finetune.feature_cache.store import Column, Columns, num_bytes

from ..checkpoint import LastCheckpoint
from .run import Run
from .samples import LoaderSamples, ViewBatch
from .storage import Storage

H, LABELS = "h", "labels"
"""The columns of a table: the input of a block, and the labels."""


@dataclass(frozen=True, slots=True)
class Base:
    """A block whose input is cached exactly, so that later blocks can be computed from it."""

    block: str
    read: Callable[[ViewBatch], list[Tensor]]
    """From a batch of views to the input of the block and the labels."""


def first_samples(run: Run, samples: LoaderSamples) -> tuple[Tensor, Tensor]:
    """Two images with their labels, on the device.

    Raises:
        ValueError: The loader does not give (images, labels), or gives random images while no
            number of views is set.
    """
    if samples.views == 0 and samples.vary():
        raise ValueError(
            f"FrozenPrefixCache would show the network each {samples.part} picture in one and the"
            " same form, but the dataset varies its pictures at random. Say how many forms of each"
            " to keep with `views` (1 for one), or leave out the augmentation, as with"
            " `train_augmentation: none`."
        )
    batch = samples.load_batch([(0, index % samples.count) for index in range(2)])
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ValueError(
            "FrozenPrefixCache needs batches of (images, labels), but the loader for"
            f" {samples.part} gives a {type(batch).__name__}."
        )
    images, labels = run.on_device(batch)
    return images, labels


def make_columns(
    run: Run,
    names: Sequence[str],
    first: Sequence[Tensor],
    num_rows: int,
    dtype: torch.dtype | None,
) -> dict[str, Columns]:
    """The columns of the tables of some blocks, from a forward pass of the first samples."""
    images, labels = first
    columns: dict[str, Columns] = {}
    with run.no_grad():
        for name in names:
            h = run.module.forward_prefix(images, name)
            columns[name] = {
                H: Column.of(h, num_rows, dtype),
                LABELS: Column.of(labels, num_rows),
            }
    return columns


def fit_in_memory(names: list[str], columns: Mapping[str, Columns], limit: int) -> list[str]:
    """The last name, which is needed now, and those before it that fit into the limit as well.

    Args:
        names: Blocks in the order of the network; the later ones are needed sooner.
        columns: Of each block's table.
        limit: Bytes.

    >>> rows = {n: {"h": Column.of(torch.ones(1, 2), 100)} for n in ("stem", "layer1", "head")}
    >>> fit_in_memory(["stem", "layer1", "head"], rows, limit=1600)
    ['layer1', 'head']
    """
    *earlier, now = names
    remaining = limit - num_bytes(columns[now])
    chosen = [now]
    for name in reversed(earlier):
        remaining -= num_bytes(columns[name])
        if remaining < 0:
            break
        chosen.insert(0, name)
    return chosen


def compute_rows(
    run: Run, samples: LoaderSamples, name: str, batch: ViewBatch
) -> dict[str, Tensor]:
    """The rows of one batch, computed from the images."""
    with run.no_grad():
        images, labels = run.on_device(samples.load_batch(batch))
        return {H: run.module.forward_prefix(images, name), LABELS: labels}


def fill(
    run: Run,
    samples: LoaderSamples,
    storages: Mapping[str, Storage],
    batches: Sequence[tuple[ViewBatch, int]],
    base: Base | None,
    image_shape: tuple[int, ...],
) -> None:
    """Write the rows of some blocks in one pass; call it within `run.no_grad()`.

    Args:
        run: The run.
        samples: The images.
        storages: Where the rows of each block go, in the order of the network.
        batches: The batches of this process, and how many rows of each are written.
        base: An earlier block to compute from; by default everything is computed from the images.
        image_shape: (C, H, W).
    """
    if not storages:
        return
    loaded: Iterator[Any] = iter([] if base else samples.load([batch for batch, _ in batches]))
    is_shown = run.trainer.is_global_zero and run.trainer.progress_bar_callback is not None
    bar = tqdm(batches, f"Keeping {samples.part} pictures", disable=not is_shown, leave=False)
    for batch, size in bar:
        _end_if_interrupted(run)
        x, labels = run.on_device(base.read(batch) if base else next(loaded))
        start = base.block if base else None
        for name, h in _block_inputs(run, x, list(storages), start, image_shape):
            rows = {H: h[:size], LABELS: labels[:size]}
            storages[name].write(samples.row_numbers(batch[:size]), rows)


def _block_inputs(
    run: Run, x: Tensor, names: Sequence[str], start: str | None, image_shape: tuple[int, ...]
) -> Iterator[tuple[str, Tensor]]:
    """The inputs of these blocks, each computed from the one before.

    Args:
        run: The run.
        x: Images, or the input of the block `start`.
        names: The blocks, in the order of the network.
        start: The block whose input `x` is; None for images.
        image_shape: (C, H, W).
    """
    for name in names:
        if start is None:
            x = run.module.forward_prefix(x, name)
        else:
            x = run.forward_between(x, start, name, image_shape)
        start = name
        yield name, x


def _end_if_interrupted(run: Run) -> None:
    callbacks: list[Callback] = run.trainer.callbacks  # type: ignore[attr-defined]  # by a connector
    for callback in callbacks:
        if isinstance(callback, LastCheckpoint):
            callback.stop_before_training(run.trainer)

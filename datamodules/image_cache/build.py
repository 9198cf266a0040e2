"""Making pictures ready once, and keeping them in memory or in files."""

import os
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import PIL
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from PIL import features
from rich.progress import track
from torch import Tensor, nn

from lit_finetune.files.memory import format_bytes, free_memory
from lit_finetune.files.permissions import warn_of_open_cache

from ..cached_images import (
    MISSING,
    CachedImages,
    CachedTensor,
    FileSegment,
    MemorySegment,
    Pixels,
    as_tensor,
)
from ..dataset import ArraySamples, Samples, make_ready
from ..transforms.pipeline import Pipeline
from .files import only_writer, read_shards, sweep, write_shard

FOLDER = ".lit_finetune_cache"
FORMAT = 2
MANY = 1000  # from here on it takes long enough for a progress bar
SHARD_BYTES = 2**30  # what a writer that is killed loses at most
MOST_AUTO = 2**30  # bytes that are kept in memory without being asked for
PROBES = 64
AHEAD = 64  # pictures that are made ready before they are asked for


class StampedSamples(Samples, Protocol):
    """Pictures that show when they have changed."""

    def stamp(self, index: int) -> list[int]:
        """Two numbers that change when the picture changes."""

    def is_current(self, name: str, stamped: Sequence[int]) -> bool:
        """Whether there is a picture of this name, and it is what it was."""


def with_stamps(samples: Samples) -> StampedSamples:
    """The same pictures, which show when they have changed.

    Raises:
        ValueError: They do not.
    """
    if not hasattr(samples, "stamp"):
        raise ValueError(
            f"{type(samples).__name__} has no method `stamp`, which tells a picture that has "
            "changed, so nothing can be kept on disk: take `cache: ram`."
        )
    return cast(StampedSamples, samples)


def keeps_in_memory(
    cache: str, samples: Samples, pipeline: Pipeline, *, is_read_often: bool
) -> bool:
    """Whether there is something to keep, and it is to be kept in memory."""
    in_memory = isinstance(samples, ArraySamples)
    if cache == "auto" and in_memory and not pipeline.variable:
        return estimated_bytes(samples, pipeline, range(len(samples.names))) <= MOST_AUTO
    return cache == "ram" and bool(pipeline.fixed) and (in_memory or is_read_often)


def on_device(
    stock: CachedImages | CachedTensor | None, device: torch.device
) -> CachedImages | CachedTensor | None:
    """A tensor that is not too large goes to the device; everything else stays as it is."""
    if isinstance(stock, CachedTensor) and stock.pictures.numel() <= MOST_AUTO:
        return CachedTensor(stock.pictures.to(device))
    return stock


def recipe_of(pipeline: Pipeline, *, root: Path | None = None) -> str:
    """All that what is kept depends on, but for the pictures themselves.

    Args:
        pipeline: Its fixed steps.
        root: The folder of the pictures, where what is kept lies elsewhere.
    """
    decoders = f"Pillow {PIL.__version__}, libjpeg {features.version('jpg')}"
    steps = ", ".join(map(describe, pipeline.fixed))
    return f"format {FORMAT}; {decoders}; {steps}; {root and root.absolute()}"


def describe(step: nn.Module) -> str:
    """A step with all that was given to it, whether or not its `repr` shows it.

    >>> from torchvision.transforms.v2 import CenterCrop
    >>> describe(CenterCrop(5))
    'CenterCrop(size=(5, 5))'
    """
    given = {key: value for key, value in vars(step).items() if not key.startswith("_")}
    given.pop("training", None)
    shown = ", ".join(f"{key}={value}" for key, value in sorted(given.items()))
    return f"{type(step).__name__}({shown})"


def folder_of(cache_dir: Path, recipe: str) -> Path:
    """Where pictures made by a recipe are kept."""
    return cache_dir / blake2b(recipe.encode(), digest_size=8).hexdigest()


def open_kept(folder: Path, samples: StampedSamples) -> CachedImages:
    """The pictures that are kept in a folder, as far as they are what they were."""
    known: dict[tuple[Any, ...], tuple[int, ...]] = {}
    shards = read_shards(folder)
    for number, shard in enumerate(shards):
        keys = zip(shard.names, *shard.stamps.T.tolist(), strict=True)
        rows = np.column_stack(
            [np.full(len(shard.names), number), shard.starts, shard.shapes, shard.sums]
        )
        known |= dict(zip(keys, map(tuple, rows.tolist()), strict=True))
    table = [
        known.get((name, *samples.stamp(index)), (MISSING, 0, 0, 0, 0, 0))
        for index, name in enumerate(samples.names)
    ]
    segments = [FileSegment(shard.path) for shard in shards]
    return CachedImages(segments, np.array(table, np.int64).reshape(-1, 6))


def keep_in_files(folder: Path, samples: StampedSamples, pipeline: Pipeline, what: str) -> None:
    """Make ready what a folder does not hold yet, or warn why that cannot be."""
    warn_of_open_cache(folder.parent)
    if not missing_in(folder, samples):  # then it need not be one that can be written to
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with only_writer(folder):
            _keep_missing(folder, samples, pipeline, what)
    except OSError as error:
        if error.errno is None:  # not the disk: a picture that cannot be read
            raise
        rank_zero_warn(
            f"The {what} pictures cannot be kept in '{folder}': {error}. The run goes on, and "
            "makes each of them ready anew each time, which is slower and gives the same. To keep "
            "them, make room there, or name another folder: `cache_dir`."
        )


def _keep_missing(folder: Path, samples: StampedSamples, pipeline: Pipeline, what: str) -> None:
    missing = missing_in(folder, samples)
    if not missing:  # another run was faster
        return
    sweep(folder, samples.is_current)
    size, free = estimated_bytes(samples, pipeline, missing), shutil.disk_usage(folder).free
    told = f"{len(missing):,} {what} pictures take about {format_bytes(size)} in '{folder}'"
    if size > free:
        rank_zero_warn(
            f"{told}, where {format_bytes(free)} are free: they are not kept. The run goes on, and "
            "makes each of them ready anew each time, which is slower and gives the same. Make "
            "room, name another folder (`cache_dir`), or keep smaller ones (`cache_size`)."
        )
        return
    rank_zero_info(f"{told}; making them ready, once.")
    # Before any is read: one that changes meanwhile then has another stamp, and is never served.
    stamps = {index: samples.stamp(index) for index in missing}
    pixels = made_ready(samples, pipeline, missing, f"Keeping the {what} pictures")
    each = max(1, SHARD_BYTES * len(missing) // max(1, size))
    for start in range(0, len(missing), each):
        part = missing[start : start + each]
        names = [samples.names[index] for index in part]
        write_shard(folder, names, [stamps[i] for i in part], islice(pixels, len(part)))


def missing_in(folder: Path, samples: StampedSamples) -> list[int]:
    """The numbers of the pictures that a folder does not hold as they are now."""
    found: list[int] = np.flatnonzero(open_kept(folder, samples).table[:, 0] == MISSING).tolist()
    return found


def keep_in_memory(
    samples: Samples, pipeline: Pipeline, what: str
) -> CachedImages | CachedTensor | None:
    """Make pictures ready and keep them; None, with a warning, if memory does not hold them."""
    everything = range(len(samples.names))
    if not everything:
        return None
    size, free = estimated_bytes(samples, pipeline, everything), free_memory()
    if free is not None and size > free:
        rank_zero_warn(
            f"{len(everything):,} {what} pictures would take about {format_bytes(size)} of memory, "
            f"but only {format_bytes(free)} are free: they are not kept. The run goes on, and makes"
            " each of them ready anew each time, which is slower and gives the same. Keep them on"
            " disk (`cache: disk`), or smaller ones (`cache_size`)."
        )
        return None
    if (pictures := taken_as_they_are(samples, pipeline)) is not None:
        return CachedTensor(pictures)
    if not isinstance(samples, ArraySamples):
        rank_zero_info(
            f"{len(everything):,} {what} pictures take about {format_bytes(size)} of memory in "
            "each process; making them ready, once a run."
        )
    pixels = made_ready(samples, pipeline, everything, f"Keeping the {what} pictures")
    if not pipeline.variable:
        return CachedTensor(filled(pixels, len(everything)))
    return in_segments(pixels)


def taken_as_they_are(samples: Samples, pipeline: Pipeline) -> Tensor | None:
    """Pictures in memory that the fixed steps would leave as they are; None if there are others."""
    if not isinstance(samples, ArraySamples) or samples.pictures.ndim != 4:
        return None
    size = samples.pictures.shape[1:3]
    probe = torch.zeros(3, *size, dtype=torch.uint8)
    for step in pipeline.fixed:
        if (probe := step(probe)).shape != (3, *size):
            return None
    return torch.from_numpy(samples.pictures).permute(0, 3, 1, 2).contiguous()


def filled(pixels: Iterator[Pixels], count: int) -> Tensor:
    """Pictures of one size as one tensor (N, C, H, W), never twice in memory."""
    first = as_tensor(next(pixels))
    pictures = first.new_empty((count, *first.shape))
    pictures[0] = first
    for index, picture in enumerate(pixels, start=1):
        pictures[index] = as_tensor(picture)
    return pictures


def in_segments(pixels: Iterator[Pixels]) -> CachedImages:
    """Pictures of any size, in stretches of memory of a moderate length."""
    segments: list[MemorySegment] = []
    table: list[list[int]] = []
    waiting: list[Pixels] = []
    start = 0
    for picture in pixels:
        table.append([len(segments), start, *picture.shape, 0])
        waiting.append(picture)
        start += picture.size
        if start > SHARD_BYTES // 16:
            segments.append(MemorySegment(waiting))
            waiting, start = [], 0
    if waiting:
        segments.append(MemorySegment(waiting))
    return CachedImages(segments, np.array(table, np.int64))


def made_ready(
    samples: Samples, pipeline: Pipeline, indices: Sequence[int], title: str
) -> Iterator[Pixels]:
    """Pictures after the fixed steps, in order, from all the cores there are."""

    def make(index: int) -> Pixels:
        return make_ready(samples, pipeline, index)

    is_quiet = len(indices) < MANY
    shown = track(indices, title, transient=True, disable=is_quiet)
    waiting: deque[Future[Pixels]] = deque()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for index in shown:
            waiting.append(pool.submit(make, index))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        yield from (future.result() for future in waiting)


def estimated_bytes(samples: Samples, pipeline: Pipeline, indices: Sequence[int]) -> int:
    """About how much some pictures take after the fixed steps: by a few of them."""
    probes = indices[:: max(1, len(indices) // PROBES)] if pipeline.variable else indices[:1]
    sizes = [make_ready(samples, pipeline, index).size for index in probes]
    return round(sum(sizes) / max(1, len(sizes)) * len(indices))

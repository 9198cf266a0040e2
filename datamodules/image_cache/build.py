"""Prepare images once, and cache them in memory or in files."""

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
from ..dataset import ArraySamples, Samples, prepare_image
from ..transforms.pipeline import Pipeline
from .files import read_shards, remove_outdated, write_lock, write_shard

FOLDER = ".lit_finetune_cache"
FORMAT = 2
PROGRESS_BAR_COUNT = 1000  # fewer images take too little time for a progress bar
SHARD_BYTES = 2**30  # the most that a killed writer loses
MAX_AUTO_BYTES = 2**30  # cached in memory by `auto`
NUM_PROBES = 64
PREFETCH = 64  # images that are prepared in advance


class StampedSamples(Samples, Protocol):
    """Samples that can tell whether an image has changed."""

    def stamp(self, index: int) -> list[int]:
        """Two numbers that change when the image changes."""

    def is_current(self, name: str, stamp_: Sequence[int]) -> bool:
        """Whether there is an image of this name, with this stamp."""


def with_stamps(samples: Samples) -> StampedSamples:
    """The samples, if they can tell whether an image has changed.

    Raises:
        ValueError: They cannot.
    """
    if not hasattr(samples, "stamp"):
        raise ValueError(
            f"{type(samples).__name__} has no method `stamp`, which shows that a picture has "
            "changed, so nothing can be cached on disk: use `cache: ram`."
        )
    return cast(StampedSamples, samples)


def uses_memory(cache: str, samples: Samples, pipeline: Pipeline, *, is_read_often: bool) -> bool:
    """Whether the images are cached in memory."""
    in_memory = isinstance(samples, ArraySamples)
    if cache == "auto" and in_memory and not pipeline.has_variable_size:
        return estimated_bytes(samples, pipeline, range(len(samples.names))) <= MAX_AUTO_BYTES
    return cache == "ram" and bool(pipeline.fixed_steps) and (in_memory or is_read_often)


def to_device(
    cached: CachedImages | CachedTensor | None, device: torch.device
) -> CachedImages | CachedTensor | None:
    """Move a cached tensor to the device, if it is small enough; other caches are unchanged."""
    if isinstance(cached, CachedTensor) and cached.images.numel() <= MAX_AUTO_BYTES:
        return CachedTensor(cached.images.to(device))
    return cached


def cache_recipe(pipeline: Pipeline, *, root: Path | None = None) -> str:
    """A text of everything that cached images depend on, except the images themselves.

    Args:
        pipeline: Has the fixed steps.
        root: The folder of the images, if the cache is in another folder.
    """
    decoders = f"Pillow {PIL.__version__}, libjpeg {features.version('jpg')}"
    steps = ", ".join(map(describe, pipeline.fixed_steps))
    return f"format {FORMAT}; {decoders}; {steps}; {root and root.absolute()}"


def describe(step: nn.Module) -> str:
    """A step with all its attributes, including those that its `repr` does not show.

    >>> from torchvision.transforms.v2 import CenterCrop
    >>> describe(CenterCrop(5))
    'CenterCrop(size=(5, 5))'
    """
    given = {key: value for key, value in vars(step).items() if not key.startswith("_")}
    given.pop("training", None)
    shown = ", ".join(f"{key}={value}" for key, value in sorted(given.items()))
    return f"{type(step).__name__}({shown})"


def cache_folder(cache_dir: Path, recipe: str) -> Path:
    """The cache folder for a recipe."""
    return cache_dir / blake2b(recipe.encode(), digest_size=8).hexdigest()


def open_cache(folder: Path, samples: StampedSamples) -> CachedImages:
    """The cached images in a folder whose originals have not changed."""
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


def cache_in_files(folder: Path, samples: StampedSamples, pipeline: Pipeline, what: str) -> None:
    """Cache the images that a folder does not contain yet, or warn why this failed."""
    warn_of_open_cache(folder.parent)
    if not missing_indices(folder, samples):  # a complete folder may be read-only
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with write_lock(folder):
            _write_missing(folder, samples, pipeline, what)
    except OSError as error:
        if error.errno is None:  # not the disk: an unreadable image
            raise
        rank_zero_warn(
            f"The {what} pictures cannot be kept in '{folder}': {error}. The run goes on, and "
            "prepares them again each time, which is slower and gives the same result. To cache "
            "them, free disk space there, or name another folder: `cache_dir`."
        )


def _write_missing(folder: Path, samples: StampedSamples, pipeline: Pipeline, what: str) -> None:
    missing = missing_indices(folder, samples)
    if not missing:  # another run was faster
        return
    remove_outdated(folder, samples.is_current)
    size, free = estimated_bytes(samples, pipeline, missing), shutil.disk_usage(folder).free
    text = f"{len(missing):,} {what} pictures take about {format_bytes(size)} in '{folder}'"
    if size > free:
        rank_zero_warn(
            f"{text}, where {format_bytes(free)} are free: they are not kept. The run goes on, and "
            "prepares them again each time, which is slower and gives the same result. Free disk "
            "space, name another folder (`cache_dir`), or cache smaller ones (`cache_size`)."
        )
        return
    rank_zero_info(f"{text}; preparing them once.")
    # Before reading: an image that changes meanwhile has another stamp, and is never used.
    stamps = {index: samples.stamp(index) for index in missing}
    pixels = prepare_images(samples, pipeline, missing, f"Caching the {what} pictures")
    each = max(1, SHARD_BYTES * len(missing) // max(1, size))
    for start in range(0, len(missing), each):
        part = missing[start : start + each]
        names = [samples.names[index] for index in part]
        write_shard(folder, names, [stamps[i] for i in part], islice(pixels, len(part)))


def missing_indices(folder: Path, samples: StampedSamples) -> list[int]:
    """The indices of the images that a folder does not contain in their present state."""
    found: list[int] = np.flatnonzero(open_cache(folder, samples).table[:, 0] == MISSING).tolist()
    return found


def cache_in_memory(
    samples: Samples, pipeline: Pipeline, what: str
) -> CachedImages | CachedTensor | None:
    """Cache images in memory; None, with a warning, if they do not fit."""
    everything = range(len(samples.names))
    if not everything:
        return None
    size, free = estimated_bytes(samples, pipeline, everything), free_memory()
    if free is not None and size > free:
        rank_zero_warn(
            f"{len(everything):,} {what} pictures would take about {format_bytes(size)} of memory, "
            f"but only {format_bytes(free)} are free: they are not kept. The run goes on, and"
            " prepares them again each time, which is slower and gives the same result. Cache them"
            " on disk (`cache: disk`), or smaller ones (`cache_size`)."
        )
        return None
    if (images := unchanged_tensor(samples, pipeline)) is not None:
        return CachedTensor(images)
    if not isinstance(samples, ArraySamples):
        rank_zero_info(
            f"{len(everything):,} {what} pictures take about {format_bytes(size)} of memory in "
            "each process; preparing them once per run."
        )
    pixels = prepare_images(samples, pipeline, everything, f"Caching the {what} pictures")
    if not pipeline.has_variable_size:
        return CachedTensor(stack_images(pixels, len(everything)))
    return to_segments(pixels)


def unchanged_tensor(samples: Samples, pipeline: Pipeline) -> Tensor | None:
    """The images in memory (N, C, H, W), if the fixed steps do not change them; else None."""
    if not isinstance(samples, ArraySamples) or samples.images.ndim != 4:
        return None
    size = samples.images.shape[1:3]
    probe = torch.zeros(3, *size, dtype=torch.uint8)
    for step in pipeline.fixed_steps:
        if (probe := step(probe)).shape != (3, *size):
            return None
    return torch.from_numpy(samples.images).permute(0, 3, 1, 2).contiguous()


def stack_images(pixels: Iterator[Pixels], count: int) -> Tensor:
    """Images of one size as one tensor (N, C, H, W), with no second copy in memory."""
    first = as_tensor(next(pixels))
    images = first.new_empty((count, *first.shape))
    images[0] = first
    for index, each in enumerate(pixels, start=1):
        images[index] = as_tensor(each)
    return images


def to_segments(pixels: Iterator[Pixels]) -> CachedImages:
    """Images of any size, in segments of memory of a moderate length."""
    segments: list[MemorySegment] = []
    table: list[list[int]] = []
    pending: list[Pixels] = []
    start = 0
    for image in pixels:
        table.append([len(segments), start, *image.shape, 0])
        pending.append(image)
        start += image.size
        if start > SHARD_BYTES // 16:
            segments.append(MemorySegment(pending))
            pending, start = [], 0
    if pending:
        segments.append(MemorySegment(pending))
    return CachedImages(segments, np.array(table, np.int64))


def prepare_images(
    samples: Samples, pipeline: Pipeline, indices: Sequence[int], title: str
) -> Iterator[Pixels]:
    """Images after the fixed steps, in order, computed on all cores."""

    def make(index: int) -> Pixels:
        return prepare_image(samples, pipeline, index)

    is_quiet = len(indices) < PROGRESS_BAR_COUNT
    progress = track(indices, title, transient=True, disable=is_quiet)
    pending: deque[Future[Pixels]] = deque()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for index in progress:
            pending.append(pool.submit(make, index))
            if len(pending) > PREFETCH:
                yield pending.popleft().result()
        yield from (future.result() for future in pending)


def estimated_bytes(samples: Samples, pipeline: Pipeline, indices: Sequence[int]) -> int:
    """The approximate size of images after the fixed steps, estimated from a few of them."""
    probes = (
        indices[:: max(1, len(indices) // NUM_PROBES)]
        if pipeline.has_variable_size
        else indices[:1]
    )
    sizes = [prepare_image(samples, pipeline, index).size for index in probes]
    return round(sum(sizes) / max(1, len(sizes)) * len(indices))

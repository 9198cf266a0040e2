"""A loader that gives each image of another loader once, in order."""

from collections.abc import Iterable, Sequence
from copy import copy
from itertools import islice
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from lit_finetune.loading.few_images import refuse_few_images


def sequential_loader(
    loader: Any,
    *,
    rank: int,
    num_replicas: int,
    limit: float = 1.0,
    part: str = "pictures",
) -> Iterable[Any]:
    """One process's share of the images of a loader: each image once, in order.

    A loader whose images have no indices is used unchanged.

    Args:
        loader: Its dataset, workers and collation are used; its order is not.
        rank: The number of this process.
        num_replicas: The number of processes.
        limit: The largest number of batches if it is an int, else the share of the images, evenly
            spaced over all of them.
        part: What the images are called in an error.

    Raises:
        ValueError: A process would have no image.
    """
    if not _is_map_style(loader):
        return islice(loader, limit) if isinstance(limit, int) else loader
    batch_size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None) or 32
    total = len(loader.dataset)
    indices = evenly_spaced(total, limited_count(total, batch_size * num_replicas, limit))
    refuse_few_images(len(indices), num_replicas, part)
    return _with_indices(loader, indices[rank::num_replicas], batch_size)


def limited_count(num_images: int, batch_size: int, limit: float) -> int:
    """The number of images that a limit on batches allows.

    >>> limited_count(100, 8, 1.0), limited_count(100, 8, 2), limited_count(100, 8, 0.5)
    (100, 16, 50)
    """
    if isinstance(limit, float):
        return max(1, int(num_images * limit))
    return min(num_images, limit * batch_size)


def evenly_spaced(num_images: int, count: int) -> list[int]:
    """The indices of `count` images, evenly spaced, because images may be sorted by class.

    >>> evenly_spaced(10, 3)
    [0, 3, 6]
    """
    return [i * num_images // count for i in range(count)]


def _is_map_style(loader: Any) -> bool:
    return (
        isinstance(loader, DataLoader)
        and loader.batch_sampler is not None
        and not isinstance(loader.dataset, IterableDataset)
    )


def _with_indices(
    loader: DataLoader[Any], indices: Sequence[int], batch_size: int
) -> DataLoader[Any]:
    """A copy of a loader that gives these images in this order."""
    other = copy(loader)
    other.__dict__.update(  # DataLoader.__setattr__ refuses these after the first iteration
        sampler=indices,
        batch_sampler=BatchSampler(indices, batch_size, drop_last=False),
        drop_last=False,
        persistent_workers=False,
        generator=torch.Generator().manual_seed(0),  # not the generator that training uses
        _iterator=None,
    )
    return other

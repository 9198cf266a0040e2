"""Each picture of a loader once, whatever the loader would do in training."""

from collections.abc import Iterable, Sequence
from copy import copy
from itertools import islice
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from lit_finetune.loading.few_pictures import refuse_few_pictures


def each_once(
    loader: Any,
    *,
    rank: int,
    num_replicas: int,
    limit: float = 1.0,
    part: str = "pictures",
) -> Iterable[Any]:
    """Batches of each picture of a loader once, in order: the share of one process.

    Where the loader cannot be asked for single pictures, it is taken as it is.

    Args:
        loader: Its dataset, workers and collation are used; its order is not.
        rank: Which process this is.
        num_replicas: Of how many.
        limit: So many batches where it is an int, or else such a share of the pictures, which are
            then spread over all.
        part: What the pictures are called in an error.

    Raises:
        ValueError: A process would have none.
    """
    if not _has_pictures(loader):
        return islice(loader, limit) if isinstance(limit, int) else loader
    size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None) or 32
    chosen = spread(len(loader.dataset), most(len(loader.dataset), size * num_replicas, limit))
    refuse_few_pictures(len(chosen), num_replicas, part)
    return _in_order(loader, chosen[rank::num_replicas], size)


def most(num_pictures: int, batch_size: int, limit: float) -> int:
    """How many of so many pictures a limit on batches leaves.

    >>> most(100, 8, 1.0), most(100, 8, 2), most(100, 8, 0.5)
    (100, 16, 50)
    """
    if isinstance(limit, float):
        return max(1, int(num_pictures * limit))
    return min(num_pictures, limit * batch_size)


def spread(num_pictures: int, kept: int) -> list[int]:
    """The numbers of some pictures, evenly spread over all, for these may be sorted by class.

    >>> spread(10, 3)
    [0, 3, 6]
    """
    return [place * num_pictures // kept for place in range(kept)]


def _has_pictures(loader: Any) -> bool:
    return (
        isinstance(loader, DataLoader)
        and loader.batch_sampler is not None
        and not isinstance(loader.dataset, IterableDataset)
    )


def _in_order(loader: DataLoader[Any], indices: Sequence[int], size: int) -> DataLoader[Any]:
    """The same loader, of these pictures in this order."""
    other = copy(loader)
    other.__dict__.update(  # a loader lets no one set these after it was made
        sampler=indices,
        batch_sampler=BatchSampler(indices, size, drop_last=False),
        drop_last=False,
        persistent_workers=False,
        generator=torch.Generator().manual_seed(0),  # not the one that training goes on with
        _iterator=None,
    )
    return other

"""A data set whose random numbers depend only on the position of a batch in the run.

Data sets and collate functions draw from global generators, which differ in each worker: a resumed
run would augment its images differently.
"""

import copy
import random
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import DataLoader, Dataset

from lit_finetune.files.fingerprint import digest
from lit_finetune.loading.seeding import derive_seed, torch_seed

_INNER = "_unseeded"
_KIND = "_unseeded_kind"


class SeededBatch(list[Any]):
    """The indices of a batch, and the seed for its random numbers."""

    seed = 0

    @classmethod
    def with_seed(cls, indices: Iterable[Any], seed: int) -> "SeededBatch":
        """A batch of these indices with a seed."""
        batch = cls(indices)
        batch.seed = seed
        return batch


class SeededIndex(NamedTuple):
    """The index of a loader without batches, with a seed."""

    index: Any
    seed: int


class SeededDataset(Dataset[Any]):
    """Wraps a data set so that it draws from the seed of a batch.

    Args:
        dataset: The user's data set; all other attributes are its own.
    """

    def __init__(self, dataset: Any) -> None:
        vars(self)[_INNER] = dataset

    def __getattr__(self, name: str) -> Any:
        if name == _INNER:  # not set yet in a worker
            raise AttributeError(name)
        return getattr(vars(self)[_INNER], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(vars(self)[_INNER], name, value)  # a `worker_init_fn` may open files

    @property
    def __class__(self) -> Any:
        """The class of the data set, for `worker_init_fn`s that check it."""
        return type(vars(self)[_INNER])

    @__class__.setter
    def __class__(self, kind: type) -> None:
        raise TypeError(f"A dataset does not become a {kind.__name__} while a run reads it.")

    def __reduce_ex__(self, protocol: Any) -> Any:
        return SeededDataset, (vars(self)[_INNER],)

    def __len__(self) -> int:
        return len(vars(self)[_INNER])

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, SeededIndex):
            return vars(self)[_INNER][index]
        with seeded(index.seed):
            return vars(self)[_INNER][index.index]

    def __getitems__(self, indices: Sequence[Any]) -> Any:
        """A whole batch: torch's loaders call this method if there is one."""
        if not isinstance(indices, SeededBatch):
            return self._items(indices)
        with seeded(indices.seed):
            items = self._items(list(indices))
        if type(items) is not list:
            return items
        return SeededBatch.with_seed(items, derive_seed(indices.seed, 1))

    def _items(self, indices: Sequence[Any]) -> Any:
        inner = vars(self)[_INNER]
        fetch = getattr(inner, "__getitems__", None)
        return fetch(indices) if fetch else [inner[index] for index in indices]


class SeededCollate:
    """Wraps a collate function so that it draws from the batch's seed."""

    def __init__(self, collate: Any) -> None:
        self.collate = collate

    def __call__(self, items: Any) -> Any:
        """Collate these items."""
        if not isinstance(items, SeededBatch):
            return self.collate(items)
        with seeded(items.seed):
            return self.collate(list(items))


def seed_loader(loader: DataLoader[Any]) -> None:
    """Let a loader, a copy of the user's, draw from the seeds that its sampler brings.

    Its `dataset` and `collate_fn` stay the user's; its iterators alone are of others.
    """
    if hasattr(loader.dataset, "__len__"):
        object.__setattr__(loader, "__class__", _seeded_kind(type(loader)))


def unseeded_loader(loader: DataLoader[Any]) -> DataLoader[Any]:
    """The loader as it was before `seed_loader`."""
    if (kind := getattr(type(loader), _KIND, None)) is None:
        return loader
    other = copy.copy(loader)
    object.__setattr__(other, "__class__", kind)
    return other


def _seeded_kind(kind: Any) -> type:
    """A subclass of a loader's class, with iterators that draw from seeds."""

    def _get_iterator(self: Any) -> Any:
        copied = copy.copy(self)
        collate = SeededCollate(self.collate_fn)
        vars(copied).update(dataset=SeededDataset(self.dataset), collate_fn=collate)
        return kind._get_iterator(copied)

    return type(kind.__name__, (kind,), {"_get_iterator": _get_iterator, _KIND: kind})


def warn_own_generator(dataset: Any, index: Any) -> None:
    """Warn if a data set returns different images with the same seed.

    Args:
        dataset: The data set of a resumed run.
        index: The index of an image.
    """
    dataset_copy = copy.copy(dataset)  # so that a file that it opens is not shared with workers
    found = []
    for _ in range(2):
        with seeded(0):
            found.append(digest(dataset_copy[index]))
    if found[0] != found[1]:
        warnings.warn(
            f"The run resumes, but {type(dataset_copy).__name__} draws random numbers from a"
            " generator of its own, which no checkpoint holds: its pictures are augmented"
            " differently than without the interruption. Draw from torch's, NumPy's or Python's"
            " global generator, which are seeded for each batch.",
            stacklevel=2,
        )


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch, NumPy and Python within a context, and restore their states afterwards."""
    states = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        with torch_seed(seed):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])

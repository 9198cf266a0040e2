"""The images of a loader by index, in any batches, and their views."""

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    SequentialSampler,
)

from lit_finetune.loading.loader_order import RepeatableSampler
from lit_finetune.loading.seeded_dataset import seeded, unseeded_loader
from lit_finetune.loading.seeding import derive_seed

Loader = DataLoader[Any]
ViewBatch = Sequence[tuple[int, int]]
"""Pairs of a view and the index of an image."""

_VIEWS = 7
"""The first seed of views: far from the seeds of runs."""


def check_loader(loader: Any) -> None:
    """Refuse a loader whose images cannot be read by index.

    Raises:
        ValueError: Says what is needed.
    """
    if not isinstance(loader, DataLoader):
        problem = f"not a {type(loader).__name__}"
    elif isinstance(loader.dataset, IterableDataset):
        problem = f"but {type(loader.dataset).__name__} can only be read in its order"
    elif loader.batch_sampler is None:
        problem = "but this one makes no batches"
    else:
        return
    raise ValueError(
        "FrozenPrefixCache needs torch's DataLoader over a dataset whose pictures have numbers,"
        f" {problem}."
    )


def sample_index(index: Any) -> int:
    """The index of an image; a sampler may give a tuple that begins with it.

    >>> sample_index(3), sample_index((3, 12345))
    (3, 3)
    """
    return int(index[0]) if isinstance(index, tuple) else int(index)


def with_batches(loader: Loader, batches: Any, **changes: Any) -> Loader:
    """A copy of a loader that gives these batches of indices."""
    other = copy.copy(loader)
    changes["generator"] = torch.Generator().manual_seed(0)
    changes |= {"batch_sampler": batches, "persistent_workers": False, "_iterator": None}
    vars(other).update(changes)  # DataLoader.__setattr__ refuses some of them
    return other


class LoaderSamples:
    """The images of a loader, by index, each as the loader would give it.

    A view is an image as a dataset with random transforms gives it for one seed.

    Args:
        loader: Over a map-style dataset.
        part: `training` or `validation`.
        views: Views of each image; 0 for a deterministic dataset.
    """

    def __init__(self, loader: Loader, part: str, views: int = 0) -> None:
        self.loader = loader = unseeded_loader(loader)
        self.part = part
        self.views = views
        self.count = len(loader.dataset)  # type: ignore[arg-type]  # torch's datasets need none
        self._index_type = _index_type(loader)
        self._seeded = _SeededItems(loader.dataset)
        # Our datasets take the seed with the index, or load a batch in their own way.
        self._takes_index = self._index_type is not int or hasattr(loader.dataset, "__getitems__")

    @property
    def num_rows(self) -> int:
        """Rows of a table of all views of all images."""
        return self.count * max(1, self.views)

    def row_numbers(self, batch: ViewBatch) -> list[int]:
        """The rows of a table that belong to views of images."""
        return [view * self.count + index for view, index in batch]

    @property
    def batch_size(self) -> int:
        """Of the batches of a run, except the last batch of an epoch."""
        size = getattr(self.loader.batch_sampler, "batch_size", None) or 1
        return max(1, min(int(size), len(self.loader.sampler)))  # type: ignore[arg-type]

    @property
    def has_fixed_batches(self) -> bool:
        """Whether the loader gives the same batches in each epoch."""
        sampler = self.loader.sampler
        is_ours = isinstance(sampler, DistributedSampler)  # it begins where the run stands
        is_fixed = isinstance(sampler, SequentialSampler) and not is_ours
        return self.part == "validation" or is_fixed

    def batches(self) -> list[tuple[ViewBatch, int]]:
        """The batches of one pass over all views, and how many images of each count.

        The last bits of a network's output can depend on the batch size. So the batches have the
        size of the run's batches: fixed batches are repeated exactly, others are filled up.
        """
        views = range(max(1, self.views))
        if self.has_fixed_batches:
            fixed = self._fixed_batches()
            return [([(view, i) for i in batch], len(batch)) for view in views for batch in fixed]
        return [batch for view in views for batch in self._filled_batches(view)]

    def load(self, batches: Sequence[ViewBatch], *, in_workers: bool = True) -> Loader:
        """A loader of these batches of views."""
        changes: dict[str, Any] = {} if self._takes_index else {"dataset": self._seeded}
        if not in_workers:
            changes |= {"num_workers": 0, "prefetch_factor": None, "timeout": 0}
        indices = [list(map(self._index, batch)) for batch in batches]
        return with_batches(self.loader, indices, **changes)

    def load_batch(self, batch: ViewBatch) -> Any:
        """One batch of views, read in this process."""
        return next(iter(self.load([batch], in_workers=False)))

    def vary(self) -> bool:
        """Whether the dataset changes its images at random.

        Where the dataset has no attribute `varies`, a few images are tried.
        """
        if (known := getattr(self.loader.dataset, "varies", None)) is not None:
            return bool(known)
        # Of a plain dataset, each use of a random generator is seen; so fewer tries are enough.
        tries, views = (8, 3) if self._takes_index else (4, 2)
        indices = range(0, self.count, max(1, self.count // tries))[:tries]
        batches = [[(view, index) for index in indices] for view in range(views)]
        first, *others = (batch[0] for batch in self.load(batches, in_workers=False))
        return self._seeded.has_drawn or not all(torch.equal(first, other) for other in others)

    def _fixed_batches(self) -> list[list[int]]:
        with _unchanged_generators(self.loader):
            return [list(map(sample_index, batch)) for batch in _batch_sampler(self.loader)]

    def _filled_batches(self, view: int) -> list[tuple[ViewBatch, int]]:
        """Batches of one size of all images in turn; the last one repeats the first images."""
        size = self.batch_size
        return [
            (
                [(view, i % self.count) for i in range(first, first + size)],
                min(size, self.count - first),
            )
            for first in range(0, self.count, size)
        ]

    def _index(self, view_and_index: tuple[int, int]) -> Any:
        view, index = view_and_index
        if self._index_type is int and self._takes_index:
            return index
        if self._index_type is int:
            return index, derive_seed(_VIEWS, view)
        kind: Callable[[int, int], Any] = self._index_type
        return kind(index, derive_seed(_VIEWS, view))


class _SeededItems(Dataset[Any]):
    """A plain dataset whose random transforms are seeded by each index."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.has_drawn = False

    def __getitem__(self, index_and_seed: tuple[int, int]) -> Any:
        index, seed = index_and_seed
        with seeded(derive_seed(seed, index)):
            before = _random_states()
            item = self.dataset[index]
            self.has_drawn |= before != _random_states()
        return item


def _random_states() -> tuple[Any, ...]:
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), str(np.random.get_state())


def _batch_sampler(loader: Loader) -> Any:
    assert loader.batch_sampler is not None, "`check_loader` refuses such loaders"
    sampler = loader.batch_sampler
    # Iterating over the outer sampler would begin the epoch in which a run resumes.
    return sampler.inner if isinstance(sampler, RepeatableSampler) else sampler


def _index_type(loader: Loader) -> type:
    """The type of a sampler's indices: int, or a tuple that begins with one."""
    with _unchanged_generators(loader):
        first = next(iter(_batch_sampler(loader)), [0])[0]
    return type(first) if isinstance(first, tuple) else int


@contextmanager
def _unchanged_generators(loader: Loader) -> Iterator[None]:
    """Restore the generators from which a loader draws."""
    others = (loader.generator, getattr(loader.sampler, "generator", None))
    generators = [torch.default_generator, *(each for each in others if each is not None)]
    states = [generator.get_state() for generator in generators]
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)

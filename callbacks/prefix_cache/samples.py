"""The pictures of a loader, by number and in any batches."""

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, SequentialSampler

from lit_finetune.loading.loader_order import RepeatableSampler
from lit_finetune.loading.seeded_dataset import seeded, unseeded_loader
from lit_finetune.loading.seeding import derive_seed

Loader = DataLoader[Any]
Batch = Sequence[tuple[int, int]]
"""Views of pictures: which view, of which number."""

_VIEWS = 7
"""Where the seeds of views begin: far from those of runs."""


def refuse_unnumbered(loader: Any) -> None:
    """Refuse a loader whose pictures have no numbers.

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


def number_of(index: Any) -> int:
    """The number of a picture, of which a sampler may say more.

    >>> number_of(3), number_of((3, 12345))
    (3, 3)
    """
    return int(index[0]) if isinstance(index, tuple) else int(index)


def in_batches(loader: Loader, batches: Any, **changes: Any) -> Loader:
    """A loader such as this one, of the batches of indices that are asked for."""
    other = copy.copy(loader)
    changes["generator"] = torch.Generator().manual_seed(0)
    changes |= {"batch_sampler": batches, "persistent_workers": False, "_iterator": None}
    vars(other).update(changes)  # torch would not have them set
    return other


class Pictures:
    """Views of a loader's pictures, as the loader would give them.

    A view is what a dataset that varies its pictures at random makes of one with a seed.

    Args:
        loader: Over a dataset of pictures with numbers.
    """

    def __init__(self, loader: Loader) -> None:
        self.loader = loader = unseeded_loader(loader)
        self.count = len(loader.dataset)  # type: ignore[arg-type]  # torch's datasets need none
        self._kind = _kind_of_index(loader)
        self._seeded = _Seeded(loader.dataset)
        # Ours are told the seed with the number, or have a way of their own to load a batch.
        self._is_own = self._kind is not int or hasattr(loader.dataset, "__getitems__")

    @property
    def batch_size(self) -> int:
        """Of the batches that a run trains on, but for the last of an epoch."""
        size = getattr(self.loader.batch_sampler, "batch_size", None) or 1
        return max(1, min(int(size), len(self.loader.sampler)))  # type: ignore[arg-type]

    @property
    def has_fixed_order(self) -> bool:
        """Whether it gives the same batches each time."""
        return isinstance(self.loader.sampler, SequentialSampler)

    def own_batches(self) -> list[list[int]]:
        """The numbers of the batches that the loader makes, if it has a fixed order."""
        with _left_as_they_are(self.loader):
            return [list(map(number_of, batch)) for batch in _sampler(self.loader)]

    def filled_batches(self, view: int) -> list[tuple[Batch, int]]:
        """Batches of one size of all pictures in turn; how many of each are no repetition."""
        size = self.batch_size
        return [
            (
                [(view, n % self.count) for n in range(first, first + size)],
                min(size, self.count - first),
            )
            for first in range(0, self.count, size)
        ]

    def load(self, batches: Sequence[Batch], *, in_workers: bool = True) -> Loader:
        """A loader of these views."""
        changes: dict[str, Any] = {} if self._is_own else {"dataset": self._seeded}
        if not in_workers:
            changes |= {"num_workers": 0, "prefetch_factor": None, "timeout": 0}
        return in_batches(
            self.loader, [list(map(self._index, batch)) for batch in batches], **changes
        )

    def vary(self) -> bool:
        """Whether the dataset makes something else of a picture each time.

        Where it does not say so itself (`varies`), a few are tried.
        """
        if (known := getattr(self.loader.dataset, "varies", None)) is not None:
            return bool(known)
        # Of others, each draw is seen.
        most, views = (8, 3) if self._is_own else (4, 2)
        numbers = range(0, self.count, max(1, self.count // most))[:most]
        batches = [[(view, number) for number in numbers] for view in range(views)]
        first, *others = (batch[0] for batch in self.load(batches, in_workers=False))
        return self._seeded.has_drawn or not all(torch.equal(first, other) for other in others)

    def _index(self, view_of: tuple[int, int]) -> Any:
        view, number = view_of
        if self._kind is int and self._is_own:
            return number
        kind: Callable[[int, int], Any] = (lambda *pair: pair) if self._kind is int else self._kind
        return kind(number, derive_seed(_VIEWS, view))


class _Seeded(Dataset[Any]):
    """A dataset that is told the seed of its randomness with each number."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.has_drawn = False

    def __getitem__(self, index: tuple[int, int]) -> Any:
        number, seed = index
        with seeded(derive_seed(seed, number)):
            before = _random_states()
            item = self.dataset[number]
            self.has_drawn |= before != _random_states()
        return item


def _random_states() -> tuple[Any, ...]:
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), str(np.random.get_state())


def _sampler(loader: Loader) -> Any:
    assert loader.batch_sampler is not None, "`refuse_unnumbered` has seen to that"
    sampler = loader.batch_sampler
    # A look at it must not begin the epoch in which a run goes on.
    return sampler.inner if isinstance(sampler, RepeatableSampler) else sampler


def _kind_of_index(loader: Loader) -> type:
    """What a sampler gives for a picture: a number, or a tuple that begins with one."""
    with _left_as_they_are(loader):
        first = next(iter(_sampler(loader)), [0])[0]
    return type(first) if isinstance(first, tuple) else int


@contextmanager
def _left_as_they_are(loader: Loader) -> Iterator[None]:
    """Put the generators back from which a loader draws."""
    others = (loader.generator, getattr(loader.sampler, "generator", None))
    generators = [torch.default_generator, *(each for each in others if each is not None)]
    states = [generator.get_state() for generator in generators]
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)

"""A loader that gives what enters a block in the place of pictures, where that is known."""

import copy
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch

from .samples import Loader, in_batches, refuse_unnumbered

_DRAWN = "prefix_has_drawn"


class Source(Protocol):
    """What knows which loader gives pictures, and which what enters a block."""

    def begin(self, loader: Loader) -> Callable[[list[Any]], Any] | None:
        """What makes a batch from a sampler's indices; None for the loader's own pictures."""

    def is_current(self) -> bool:
        """Whether batches may still be made so."""


def with_prefixes(loader: Any, source: Source) -> Loader:
    """A loader that asks, when it is first asked for a batch, what to give in this epoch.

    It is of a class made from that of the loader, and has all that this has.

    Raises:
        ValueError: Its pictures have no numbers.
    """
    refuse_unnumbered(loader)
    twin: Loader = copy.copy(loader)
    vars(twin)["prefix_source"] = source
    vars(twin)["prefix_plain"] = loader
    object.__setattr__(twin, "__class__", _kind(type(loader)))
    return twin


def _kind(kind: type) -> type:
    """The class of a loader, with other batches at times."""

    def batches(self: Any) -> Iterator[Any]:
        # A generator: nothing is asked and nothing drawn before the first batch is.
        loader, source = self.prefix_plain, self.prefix_source
        make = source.begin(loader)
        if make is None:
            yield from _begun(loader)
            return
        _draw_as_torch_does(loader)
        order = iter(loader.batch_sampler)
        for indices in order:
            if not source.is_current():
                yield from in_batches(loader, [indices, *order])
                return
            yield make(indices)

    return type(f"Prefix{kind.__name__}", (kind,), {"__iter__": batches})


def _begun(loader: Loader) -> Iterator[Any]:
    """An iterator of torch's, which draws a seed for its workers unless that has been done."""
    own = loader.generator
    if loader._iterator is None and vars(loader).get(_DRAWN):
        vars(loader)["generator"] = torch.Generator().manual_seed(0)
    try:
        return iter(loader)
    finally:
        vars(loader)["generator"] = own


def _draw_as_torch_does(loader: Loader) -> None:
    """What an iterator of torch's draws when it is made, so that what comes after is the same."""
    if loader.persistent_workers and loader.num_workers > 0:  # it makes one, and keeps it
        if loader._iterator is not None or vars(loader).get(_DRAWN):
            return
        vars(loader)[_DRAWN] = True
    torch.empty((), dtype=torch.int64).random_(generator=loader.generator)

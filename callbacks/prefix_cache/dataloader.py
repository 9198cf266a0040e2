"""A loader that gives cached block inputs instead of images where they are known."""

import copy
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch

from .samples import Loader, check_loader, with_batches

_HAS_DRAWN = "prefix_has_drawn"


class PrefixProvider(Protocol):
    """Decides for each epoch whether a loader gives images or cached block inputs."""

    def begin(self, loader: Loader) -> Callable[[list[Any]], Any] | None:
        """A function from a sampler's indices to a batch; None for the loader's own images."""

    def is_current(self) -> bool:
        """Whether the function that `begin` returned may still be used."""


def with_prefixes(loader: Any, provider: PrefixProvider) -> Loader:
    """A copy of a loader that asks the provider when its first batch is requested.

    Its class is a subclass of the loader's, and it has all of the loader's attributes.

    Raises:
        ValueError: Its images cannot be read by index.
    """
    check_loader(loader)
    copied: Loader = copy.copy(loader)
    vars(copied)["prefix_provider"] = provider
    vars(copied)["prefix_plain"] = loader
    object.__setattr__(copied, "__class__", _prefix_class(type(loader)))
    return copied


def _prefix_class(loader_class: type) -> type:
    """A subclass of a loader's class with another `__iter__`."""

    def iterate(self: Any) -> Iterator[Any]:
        # A generator: nothing is decided and no random number is drawn before the first batch.
        loader, provider = self.prefix_plain, self.prefix_provider
        make_batch = provider.begin(loader)
        if make_batch is None:
            yield from _iterator_of(loader)
            return
        _draw_base_seed(loader)
        remaining = iter(loader.batch_sampler)
        for indices in remaining:
            if not provider.is_current():
                yield from with_batches(loader, [indices, *remaining])
                return
            yield make_batch(indices)

    return type(f"Prefix{loader_class.__name__}", (loader_class,), {"__iter__": iterate})


def _iterator_of(loader: Loader) -> Iterator[Any]:
    """An iterator of torch's, which draws a seed for its workers unless that has been done."""
    generator = loader.generator
    if loader._iterator is None and vars(loader).get(_HAS_DRAWN):
        vars(loader)["generator"] = torch.Generator().manual_seed(0)
    try:
        return iter(loader)
    finally:
        vars(loader)["generator"] = generator


def _draw_base_seed(loader: Loader) -> None:
    """Draw the seed that torch's iterator draws when it is made, so that later draws are equal."""
    if loader.persistent_workers and loader.num_workers > 0:  # torch makes one iterator in all
        if loader._iterator is not None or vars(loader).get(_HAS_DRAWN):
            return
        vars(loader)[_HAS_DRAWN] = True
    torch.empty((), dtype=torch.int64).random_(generator=loader.generator)

"""Make the order of a user's DataLoader repeatable, for runs that resume within an epoch.

torch's loaders have no state: a run resumed within an epoch would start it again, in another order.
"""

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, islice
from typing import Any
from zlib import crc32

import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from lit_finetune.loading.seeded_dataset import (
    SeededBatch,
    SeededIndex,
    seed_loader,
    warn_own_generator,
)
from lit_finetune.loading.seeding import derive_seed, torch_seed

_SHUFFLE, _VARY = 0x5A, 0x5B
"""Constants that separate the seeds of an epoch's order and images from those of its steps."""
_SAMPLER = "lit_finetune_sampler"


class RepeatableSampler:
    """Wraps a sampler or batch sampler so that an epoch can start at any batch.

    Its random numbers from torch's global generator depend only on the run's seed and the epoch.
    Each batch has a seed, from which a `SeededDataset` draws.

    Args:
        sampler: The user's or torch's sampler.
        generators: The generators that it and the loader draw from.
        seed: The run's seed; a loaded state has its own.
        epoch: Returns the epoch; called at the start of each.
        rank: The rank of the process.
        dataset: The loader's data set.
    """

    def __init__(
        self,
        sampler: Any,
        generators: Mapping[str, torch.Generator],
        *,
        seed: int,
        epoch: Callable[[], int],
        rank: int,
        dataset: Any,
    ) -> None:
        self.inner = sampler
        self._rank, self._dataset, self._is_resumed = rank, dataset, False
        self._generators, self.seed, self._epoch = generators, seed, epoch
        self._states: dict[str, Tensor] = {}
        self._checksums = [0]
        self._resumed: dict[str, Any] | None = None

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # not there yet in a worker
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __len__(self) -> int:
        return len(self.inner)

    def __iter__(self) -> Iterator[Any]:
        # A generator, as in torch's samplers: torch creates two iterators, and uses the second.
        epoch, resumed, self._resumed = self._epoch(), self._resumed, None
        for sampler in self._samplers():
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)
        if resumed is not None:
            self._set_generators(resumed["generators"])
        self._states, self._checksums = _states_of(self._generators), [0]
        with torch_seed(derive_seed(self.seed, epoch, _SHUFFLE)):
            batches = self._with_checksums(iter(self.inner))
            if resumed is not None:
                self._skip(batches, resumed)
            first = list(islice(batches, 1))  # torch's samplers draw the whole order with the first
        if self._is_resumed and first:
            self._warn_on_first(first[0])
        yield from self._with_seeds(epoch, chain(first, batches))

    def state_dict(self, batches: int) -> dict[str, Any]:
        """The state to repeat the order after a number of batches of the epoch."""
        if self._resumed is not None:
            return self._resumed
        is_started = 0 < batches < len(self._checksums)
        return {
            "seed": self.seed,
            "sampler_seeds": [_seed_of(each) for each in self._samplers()],
            "batches": batches,
            "generators": self._states if batches else _states_of(self._generators),
            "mark": self._checksums[batches] if is_started else 0,
        }

    def load_state_dict(self, state: Mapping[str, Any], *, batches: int) -> None:
        """Start the next epoch after a number of batches, in the order of a saved state."""
        self.seed, self._is_resumed = state["seed"], True
        for sampler, seed in zip(self._samplers(), state.get("sampler_seeds", []), strict=False):
            if seed is not None and _seed_of(sampler) is not None:
                sampler.seed = seed
        if batches:
            self._resumed = {**state}
        else:
            self._set_generators(state["generators"])

    def finish_epoch(self) -> None:
        """Draw the random numbers of the resumed epoch, if all of its batches were done before."""
        if self._resumed is not None:
            for _ in self:
                pass

    def _samplers(self) -> list[Any]:
        return [self.inner, getattr(self.inner, "sampler", None)]

    def _set_generators(self, states: Mapping[str, Tensor]) -> None:
        for name in states.keys() & self._generators.keys():
            self._generators[name].set_state(states[name])

    def _skip(self, batches: Iterator[Any], state: Mapping[str, Any]) -> None:
        for _ in islice(batches, state["batches"]):
            pass
        if state["mark"] not in (self._checksums[-1], None):
            _warn(state["batches"], "its sampler brings another order each time it is asked")

    def _with_seeds(self, epoch: int, batches: Iterator[Any]) -> Iterator[Any]:
        for number, batch in enumerate(batches, start=len(self._checksums) - 2):
            seed = derive_seed(self.seed, epoch, number, self._rank, _VARY)
            is_many = isinstance(batch, list | tuple | Tensor)
            yield SeededBatch.with_seed(batch, seed) if is_many else SeededIndex(batch, seed)

    def _warn_on_first(self, batch: Any) -> None:
        self._is_resumed = False
        if hasattr(self._dataset, "__len__") and self._rank == 0:
            index = batch[0] if isinstance(batch, list | tuple | Tensor) else batch
            warn_own_generator(self._dataset, index)

    def _with_checksums(self, batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            self._checksums.append(crc32(repr(batch).encode(), self._checksums[-1]))
            yield batch


def make_repeatable(trainer: Any) -> bool:
    """Make the order of the training loader repeatable; return whether it was changed.

    A loader with a state of its own, or without an order, is not changed. The user's object is not
    modified: the Trainer gets a copy.
    """
    combined = trainer.fit_loop._combined_loader
    loaders = combined.flattened
    if len(loaders) != 1 or not _is_stateless_map(loaders[0]) or sampler_of(trainer) is not None:
        return False
    loader = copy.copy(loaders[0])
    loaders[0]._iterator = loader._iterator = None  # persistent workers would use the old sampler
    seed_loader(loader)
    name = "sampler" if loader.batch_sampler is None else "batch_sampler"
    previous = vars(trainer.fit_loop).get(_SAMPLER)  # of the loader that this one replaces
    vars(loader)[name] = vars(trainer.fit_loop)[_SAMPLER] = RepeatableSampler(
        getattr(loader, name),
        _generators_of(loader),
        seed=previous.seed if previous else torch.initial_seed(),
        epoch=lambda: trainer.current_epoch,
        rank=trainer.global_rank,
        dataset=loader.dataset,
    )
    if (
        wrapped := vars(loader).get("prefix_plain")
    ) is not None:  # FrozenPrefixCache reads this one
        vars(loader)["prefix_plain"] = copied = copy.copy(wrapped)
        vars(copied)[name], copied._iterator = vars(loader)[name], None
        seed_loader(copied)
    combined.flattened = [loader]
    return True


def make_reloaded_repeatable(trainer: Any) -> None:
    """Do so for a loader that was reloaded by `reload_dataloaders_every_n_epochs`."""
    if make_repeatable(trainer):
        iter(trainer.fit_loop._data_fetcher)


def sampler_of(trainer: Any) -> RepeatableSampler | None:
    """The repeatable sampler of the training loader; None if there is none."""
    combined = trainer.fit_loop._combined_loader
    for loader in getattr(combined, "flattened", []):
        for name in ("batch_sampler", "sampler"):
            if isinstance(found := getattr(loader, name, None), RepeatableSampler):
                return found
    return None


def order_of(trainer: Any, *, batches: int) -> dict[str, Any] | None:
    """The state of the order for a checkpoint, after a number of batches of the epoch."""
    sampler = sampler_of(trainer)
    return None if sampler is None else sampler.state_dict(batches)


def resume_order(trainer: Any, state: Mapping[str, Any] | None, *, batches: int) -> None:
    """Let the training loader resume after a number of batches of an epoch, or warn."""
    sampler = sampler_of(trainer)
    if sampler is not None and state is not None:
        if trainer.global_rank > 0:  # the checksum is of the first process's batches
            state = {**state, "mark": None}
        sampler.load_state_dict(state, batches=batches)
        warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before")
    elif batches and sampler is not None:
        _warn(batches, "the checkpoint does not say in which order pictures came")
    elif batches and not _has_state(trainer):
        _warn(
            batches,
            "it has neither an order that can be repeated nor a `state_dict`",
            restarts=True,
        )


def _warn(batches: int, reason: str, *, restarts: bool = False) -> None:
    consequence = "the epoch starts again" if restarts else "other pictures may come"
    warnings.warn(
        f"The run resumes after {batches} batches of an epoch, but the training loader cannot:"
        f" {reason}. So {consequence}, and some pictures are trained on twice or not at all."
        " Resume from a checkpoint of an epoch's end, or use a sampler that is seeded.",
        stacklevel=2,
    )


def _is_stateless_map(loader: Any) -> bool:
    is_map = isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset)
    return is_map and not hasattr(loader, "load_state_dict")


def _has_state(trainer: Any) -> bool:
    loaders = trainer.fit_loop._combined_loader.flattened
    return all(hasattr(each, "load_state_dict") for each in loaders)


def _generators_of(loader: Any) -> dict[str, torch.Generator]:
    """The generators of a loader and its samplers, each once."""
    batch_sampler = loader.batch_sampler
    owners = {
        "loader": loader,
        "sampler": loader.sampler,
        "batch_sampler": batch_sampler,
        "inner_sampler": getattr(batch_sampler, "sampler", None),
    }
    found = {name: getattr(owner, "generator", None) for name, owner in owners.items()}
    unique = {id(each): name for name, each in found.items() if isinstance(each, torch.Generator)}
    return {name: found[name] for name in unique.values()}  # type: ignore[misc]


def _seed_of(sampler: Any) -> int | None:
    """The seed of a DistributedSampler, which Lightning takes from `seed_everything`."""
    return int(sampler.seed) if isinstance(sampler, DistributedSampler) else None


def _states_of(generators: Mapping[str, torch.Generator]) -> dict[str, Tensor]:
    return {name: each.get_state() for name, each in generators.items()}

"""The order in which a DataLoader of the user's own brings pictures, repeated when a run goes on.

torch's loaders know nothing of the batches that were done: a run resumed amid an epoch would begin
it anew, in another order.
"""

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, islice
from typing import Any
from zlib import crc32

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lit_finetune.loading.seeded_dataset import (
    SeededBatch,
    SeededIndex,
    seed_loader,
    warn_of_own_generator,
)
from lit_finetune.loading.seeding import derive_seed, drawing_from

_SHUFFLE, _VARY = 0x5A, 0x5B
"""Keep the seeds of an epoch's order, and of its pictures, apart from those of its steps."""
_SAMPLER = "lit_finetune_sampler"


class RepeatableSampler:
    """Brings what a batch sampler, or a sampler, brings, from any batch of an epoch on.

    What it draws from torch's global generator follows from run and epoch. Each batch has a seed,
    from which a `SeededDataset` draws.

    Args:
        sampler: Of the user's own, or torch's.
        generators: What it, and the loader, draw from.
        seed: Of the run; a state that is loaded brings its own.
        epoch: Asked at the start of each epoch.
        rank: Of the process.
        dataset: Of the loader.
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
        self._rank, self._dataset, self._goes_on = rank, dataset, False
        self._generators, self.seed, self._epoch = generators, seed, epoch
        self._states: dict[str, Tensor] = {}
        self._marks = [0]
        self._resumed: dict[str, Any] | None = None

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # not there yet in a worker
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __len__(self) -> int:
        return len(self.inner)

    def __iter__(self) -> Iterator[Any]:
        # A generator, as torch's samplers: torch asks twice for an iterator, and uses the second.
        epoch, resumed, self._resumed = self._epoch(), self._resumed, None
        samplers: list[Any] = [self.inner, getattr(self.inner, "sampler", None)]
        for sampler in samplers:
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)
        if resumed is not None:
            self._set(resumed["generators"])
        self._states, self._marks = _states_of(self._generators), [0]
        with drawing_from(derive_seed(self.seed, epoch, _SHUFFLE)):
            batches = self._marked(iter(self.inner))
            if resumed is not None:
                self._pass_over(batches, resumed)
            first = list(islice(batches, 1))  # with it torch's samplers draw the whole order
        if self._goes_on and first:
            self._warn_once(first[0])
        yield from self._seeded(epoch, chain(first, batches))

    def state_dict(self, batches: int) -> dict[str, Any]:
        """What repeats the order from here on, after so many batches of the epoch."""
        if self._resumed is not None:
            return self._resumed
        is_begun = 0 < batches < len(self._marks)
        return {
            "seed": self.seed,
            "batches": batches,
            "generators": self._states if batches else _states_of(self._generators),
            "mark": self._marks[batches] if is_begun else 0,
        }

    def load_state_dict(self, state: Mapping[str, Any], *, batches: int) -> None:
        """Begin the next epoch after so many batches, in the order that a run has begun."""
        self.seed, self._goes_on = state["seed"], True
        if batches:
            self._resumed = {**state}
        else:
            self._set(state["generators"])

    def finish_epoch(self) -> None:
        """Draw what the epoch in which a run went on has drawn, if none of its batches was left."""
        if self._resumed is not None:
            for _ in self:
                pass

    def _set(self, states: Mapping[str, Tensor]) -> None:
        for name in states.keys() & self._generators.keys():
            self._generators[name].set_state(states[name])

    def _pass_over(self, batches: Iterator[Any], state: Mapping[str, Any]) -> None:
        for _ in islice(batches, state["batches"]):
            pass
        if state["mark"] not in (self._marks[-1], None):
            _warn(state["batches"], "its sampler brings another order each time it is asked")

    def _seeded(self, epoch: int, batches: Iterator[Any]) -> Iterator[Any]:
        for number, batch in enumerate(batches, start=len(self._marks) - 2):
            seed = derive_seed(self.seed, epoch, number, self._rank, _VARY)
            is_many = isinstance(batch, list | tuple | Tensor)
            yield SeededBatch.of(batch, seed) if is_many else SeededIndex(batch, seed)

    def _warn_once(self, batch: Any) -> None:
        self._goes_on = False
        if hasattr(self._dataset, "__len__") and self._rank == 0:
            index = batch[0] if isinstance(batch, list | tuple | Tensor) else batch
            warn_of_own_generator(self._dataset, index)

    def _marked(self, batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            self._marks.append(crc32(repr(batch).encode(), self._marks[-1]))
            yield batch


def follow_order(trainer: Any) -> bool:
    """Let the training loader's order be one that can be repeated; whether that is new.

    A loader that has a state of its own, or no order, stays as it is. The user's object is not
    changed: the Trainer is given a copy.
    """
    combined = trainer.fit_loop._combined_loader
    loaders = combined.flattened
    if len(loaders) != 1 or not _is_plain(loaders[0]) or sampler_of(trainer) is not None:
        return False
    loader = copy.copy(loaders[0])
    loaders[0]._iterator = loader._iterator = None  # persistent workers ask the old sampler
    seed_loader(loader)
    name = "sampler" if loader.batch_sampler is None else "batch_sampler"
    before = vars(trainer.fit_loop).get(_SAMPLER)  # of a loader in whose place this one has come
    vars(loader)[name] = vars(trainer.fit_loop)[_SAMPLER] = RepeatableSampler(
        getattr(loader, name),
        _generators_of(loader),
        seed=before.seed if before else torch.initial_seed(),
        epoch=lambda: trainer.current_epoch,
        rank=trainer.global_rank,
        dataset=loader.dataset,
    )
    if (plain := vars(loader).get("prefix_plain")) is not None:  # a FrozenPrefixCache asks this one
        vars(loader)["prefix_plain"] = twin = copy.copy(plain)
        vars(twin)[name], twin._iterator = vars(loader)[name], None
        seed_loader(twin)
    combined.flattened = [loader]
    return True


def follow_reloaded(trainer: Any) -> None:
    """The same for a loader that is new in an epoch: `reload_dataloaders_every_n_epochs`."""
    if follow_order(trainer):
        iter(trainer.fit_loop._data_fetcher)


def sampler_of(trainer: Any) -> RepeatableSampler | None:
    """The sampler that was put into the training loader, if there is one."""
    combined = trainer.fit_loop._combined_loader
    for loader in getattr(combined, "flattened", []):
        for name in ("batch_sampler", "sampler"):
            if isinstance(found := getattr(loader, name, None), RepeatableSampler):
                return found
    return None


def order_of(trainer: Any, *, batches: int) -> dict[str, Any] | None:
    """What a checkpoint holds of the order, after so many batches of the epoch."""
    sampler = sampler_of(trainer)
    return None if sampler is None else sampler.state_dict(batches)


def resume_order(trainer: Any, state: Mapping[str, Any] | None, *, batches: int) -> None:
    """Let the training loader go on after so many batches of an epoch, or say that it cannot."""
    sampler = sampler_of(trainer)
    if sampler is not None and state is not None:
        if trainer.global_rank > 0:  # the mark is of the first process's own batches
            state = {**state, "mark": None}
        sampler.load_state_dict(state, batches=batches)
        warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before")
    elif batches and sampler is not None:
        _warn(batches, "the checkpoint does not say in which order pictures came")
    elif batches and not _has_state(trainer):
        _warn(batches, "it has neither an order that can be repeated nor a `state_dict`", anew=True)


def _warn(batches: int, why: str, *, anew: bool = False) -> None:
    what = "the epoch begins anew" if anew else "other pictures may come"
    warnings.warn(
        f"The run goes on after {batches} batches of an epoch, but the training loader cannot:"
        f" {why}. So {what}, and some pictures are trained on twice or not at all. Resume from a"
        " checkpoint of an epoch's end, or use a sampler that is seeded.",
        stacklevel=2,
    )


def _is_plain(loader: Any) -> bool:
    is_map = isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset)
    return is_map and not hasattr(loader, "load_state_dict")


def _has_state(trainer: Any) -> bool:
    loaders = trainer.fit_loop._combined_loader.flattened
    return all(hasattr(each, "load_state_dict") for each in loaders)


def _generators_of(loader: Any) -> dict[str, torch.Generator]:
    """What a loader and its samplers draw from, each once."""
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


def _states_of(generators: Mapping[str, torch.Generator]) -> dict[str, Tensor]:
    return {name: each.get_state() for name, each in generators.items()}

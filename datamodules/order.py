"""The order of the training pictures, as a function of seed and place in the run alone."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from typing_extensions import override

from lit_finetune.seeding import derive_seed


class Draw(NamedTuple):
    """The number of a picture, and the seed of how it is varied this time."""

    picture: int
    seed: int


class Place(NamedTuple):
    """Where a run stands: the epoch that trains next, and how many of its batches are done."""

    epoch: int
    batches: int


class EpochSampler(DistributedSampler[int]):
    """Shuffle by seed and epoch, and start where the run stands.

    With torch's own sampler a resumed run would see other pictures than one that was never
    stopped, and would begin an interrupted epoch from its start.

    Args:
        dataset: What is sampled; processes that do not divide it evenly repeat a picture or two.
        num_replicas: The number of processes.
        rank: Which of them this is.
        seed: Of the run, the same in all processes.
        batch_size: How many pictures one batch of `Place.batches` has.
        place: Asked at the start of each epoch.
    """

    def __init__(
        self,
        dataset: Dataset[object],
        *,
        num_replicas: int,
        rank: int,
        seed: int,
        batch_size: int,
        place: Callable[[], Place],
    ) -> None:
        super().__init__(dataset, num_replicas, rank, shuffle=False)
        self._run_seed = seed
        self._batch_size = batch_size
        self._place = place

    @override
    def __iter__(self) -> Iterator[Draw]:  # type: ignore[override]  # an index with a seed
        epoch, batches = self._place()
        generator = torch.Generator().manual_seed(derive_seed(self._run_seed, epoch))
        order = torch.randperm(len(self.dataset), generator=generator).tolist()  # type: ignore[arg-type]
        for position in list(super().__iter__())[batches * self._batch_size :]:
            index = order[position]
            yield Draw(index, derive_seed(self._run_seed, epoch, index))


class ResumableLoader(DataLoader[tuple[Tensor, int]]):
    """A loader that goes on where the run stands: its sampler finds out by itself.

    So there is no state to keep; but Lightning asks for these methods, or else warns on resume
    that the batches would start over.
    """

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the place in the run is the Trainer's to keep."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take nothing back."""


def place_in_run(loop: Any) -> Place:
    """Where a Trainer's `fit_loop` stands when the training loader is about to be iterated.

    On resume Lightning iterates it before it has settled on the epoch: a checkpoint of an epoch's
    end may or may not count that epoch as processed.
    """
    epochs, batches = loop.epoch_progress.current, loop.epoch_loop.batch_progress
    if batches.is_last_batch:
        return Place(max(epochs.processed, epochs.started), 0)
    return Place(epochs.processed, batches.current.ready)

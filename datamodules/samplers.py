"""Which process loads which picture, and when: a function of seed and place in the run alone."""

from collections.abc import Callable, Iterator
from itertools import chain, count, repeat
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, SequentialSampler
from typing_extensions import override

from lit_finetune.loading.few_pictures import refuse_few_pictures
from lit_finetune.loading.run_position import RunPosition
from lit_finetune.loading.seeding import derive_seed


class Draw(NamedTuple):
    """The number of a picture, and the epoch's seed: the two say how it is varied this time."""

    picture: int
    seed: int


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
        place: Callable[[], RunPosition],
    ) -> None:
        super().__init__(dataset, num_replicas, rank, shuffle=False)
        self._run_seed = seed
        self._batch_size = batch_size
        self._place = place

    @override
    def __iter__(self) -> Iterator[Draw]:  # type: ignore[override]  # an index with a seed
        epoch, batches = self._place()
        seed = derive_seed(self._run_seed, epoch)
        order = self._order(seed)
        own = torch.tensor(list(super().__iter__())[batches * self._batch_size :], dtype=torch.long)
        return map(Draw, order[own].tolist(), repeat(seed))

    def _order(self, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randperm(len(self.dataset), generator=generator)  # type: ignore[arg-type]


class UnshuffledEpochSampler(EpochSampler, SequentialSampler):  # type: ignore[misc]  # of draws
    """The same pictures in each epoch, varied anew: for `overfit_batches`.

    Lightning replaces whatever is no `SequentialSampler` then, and draws and place would be lost.
    """

    @override
    def _order(self, seed: int) -> torch.Tensor:
        return torch.arange(len(self.dataset))  # type: ignore[arg-type]


def is_overfit(trainer: Any) -> bool:
    """Whether a Trainer trains on the same few batches in each epoch."""
    return getattr(trainer, "overfit_batches", 0) > 0


def sampler_class(trainer: Any) -> type[EpochSampler]:
    """What samples the training pictures of a Trainer."""
    return UnshuffledEpochSampler if is_overfit(trainer) else EpochSampler


class UnpaddedSampler(DistributedSampler[int]):
    """Share pictures out among processes, each once, so that metrics count every one once.

    Torch's own sampler repeats a few where the processes do not divide them evenly.

    Raises:
        ValueError: There are fewer pictures than processes, and one would have none.
    """

    def __init__(self, dataset: Dataset[object], *, num_replicas: int, rank: int) -> None:
        super().__init__(dataset, num_replicas, rank, shuffle=False)
        num_pictures = len(dataset)  # type: ignore[arg-type]  # torch's datasets need no length
        refuse_few_pictures(num_pictures, num_replicas)
        self._own = range(rank, num_pictures, num_replicas)

    @override
    def __iter__(self) -> Iterator[int]:
        return iter(self._own)

    @override
    def __len__(self) -> int:
        return len(self._own)


def even_batch_size(num_pictures: int, batch_size: int, num_replicas: int) -> int:
    """The batch size nearest to the one asked for with which all processes have as many batches.

    They would wait for each other for ever otherwise: DistributedDataParallel exchanges buffers in
    every forward pass. Shares differ by one picture at most, so only a size that divides the
    smaller share is wrong.

    >>> even_batch_size(65, batch_size=32, num_replicas=2)
    31

    Raises:
        ValueError: There are fewer pictures than processes.
    """
    refuse_few_pictures(num_pictures, num_replicas)
    share, rest = divmod(num_pictures, num_replicas)
    sizes = chain(range(batch_size, 1, -1), count(batch_size + 1))
    return next(size for size in sizes if share % size) if rest else batch_size


class PictureLoader(DataLoader[Any]):
    """Batches of a `PictureDataset`, finished where they are wanted.

    What is left when a batch leaves a worker, normalisation, is done here: on the device, if that
    is a GPU, to which 8 bits a channel then travel. The network's own hooks stay free.
    """

    @override
    def __iter__(self) -> Any:
        dataset: Any = self.dataset
        return (dataset.finish(images, labels) for images, labels in super().__iter__())


class ResumableLoader(PictureLoader):
    """A loader that goes on where the run stands: its sampler finds out by itself.

    So there is no state to keep; but Lightning asks for these methods, or else warns on resume
    that the batches would start over.
    """

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the place in the run is the Trainer's to keep."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take nothing back."""

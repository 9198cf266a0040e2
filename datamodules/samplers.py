"""Samplers and loaders whose order depends only on the seed and the position in the run."""

from collections.abc import Callable, Iterator
from itertools import chain, count, repeat
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, SequentialSampler
from typing_extensions import override

from lit_finetune.loading.few_images import refuse_few_images
from lit_finetune.loading.run_position import RunPosition
from lit_finetune.loading.seeding import derive_seed


class EpochIndex(NamedTuple):
    """The index of an image and the seed of the epoch, which determine its random transform."""

    image: int
    seed: int


class EpochSampler(DistributedSampler[int]):
    """Shuffle by seed and epoch, and start at the position of the run.

    With torch's sampler, a resumed run would see other images than an uninterrupted one, and would
    start an interrupted epoch from its beginning.

    Args:
        dataset: If the processes cannot share it evenly, some images are repeated.
        num_replicas: The number of processes.
        rank: The number of this process.
        seed: The seed of the run, the same in all processes.
        batch_size: The number of images in one batch of `RunPosition`.
        position: Called at the start of each epoch.
    """

    def __init__(
        self,
        dataset: Dataset[object],
        *,
        num_replicas: int,
        rank: int,
        seed: int,
        batch_size: int,
        position: Callable[[], RunPosition],
    ) -> None:
        super().__init__(dataset, num_replicas, rank, shuffle=False)
        self._run_seed = seed
        self._batch_size = batch_size
        self._position = position

    @override
    def __iter__(self) -> Iterator[EpochIndex]:  # type: ignore[override]  # an index with a seed
        epoch, batches = self._position()
        seed = derive_seed(self._run_seed, epoch)
        order = self._order(seed)
        own = torch.tensor(list(super().__iter__())[batches * self._batch_size :], dtype=torch.long)
        return map(EpochIndex, order[own].tolist(), repeat(seed))

    def _order(self, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randperm(len(self.dataset), generator=generator)  # type: ignore[arg-type]


class UnshuffledEpochSampler(EpochSampler, SequentialSampler):  # type: ignore[misc]  # seeded indices
    """The same order in each epoch, with new random transforms: for `overfit_batches`.

    Lightning replaces any sampler that is no `SequentialSampler` then, so that the seeds and the
    position would be lost.
    """

    @override
    def _order(self, seed: int) -> torch.Tensor:
        return torch.arange(len(self.dataset))  # type: ignore[arg-type]


def is_overfit(trainer: Any) -> bool:
    """Whether a Trainer trains on the same few batches in each epoch."""
    return getattr(trainer, "overfit_batches", 0) > 0


def sampler_class(trainer: Any) -> type[EpochSampler]:
    """The sampler class for the training images of a Trainer."""
    return UnshuffledEpochSampler if is_overfit(trainer) else EpochSampler


class UnpaddedSampler(DistributedSampler[int]):
    """Distribute images to processes without repetition, so that metrics count each image once.

    Torch's sampler repeats some images if the processes cannot share them evenly.

    Raises:
        ValueError: There are fewer images than processes.
    """

    def __init__(self, dataset: Dataset[object], *, num_replicas: int, rank: int) -> None:
        super().__init__(dataset, num_replicas, rank, shuffle=False)
        num_pictures = len(dataset)  # type: ignore[arg-type]  # a `Dataset` may have no length
        refuse_few_images(num_pictures, num_replicas)
        self._own = range(rank, num_pictures, num_replicas)

    @override
    def __iter__(self) -> Iterator[int]:
        return iter(self._own)

    @override
    def __len__(self) -> int:
        return len(self._own)


def even_batch_size(num_pictures: int, batch_size: int, num_replicas: int) -> int:
    """The nearest batch size with which all processes have the same number of batches.

    Otherwise they would wait for each other forever: DistributedDataParallel synchronizes buffers
    in every forward pass. The shares of the processes differ by at most one image, so only a size
    that divides the smaller share is wrong.

    >>> even_batch_size(65, batch_size=32, num_replicas=2)
    31

    Raises:
        ValueError: There are fewer images than processes.
    """
    refuse_few_images(num_pictures, num_replicas)
    share, rest = divmod(num_pictures, num_replicas)
    sizes = chain(range(batch_size, 1, -1), count(batch_size + 1))
    return next(size for size in sizes if share % size) if rest else batch_size


class ImageLoader(DataLoader[Any]):
    """Batches of a `ImageDataset`, normalized in the main process.

    On a GPU they are normalized there, so that only 8 bits per channel are transferred. The
    module's own transfer hooks stay free.
    """

    @override
    def __iter__(self) -> Any:
        dataset: Any = self.dataset
        return (dataset.finish(images, labels) for images, labels in super().__iter__())


class ResumableLoader(ImageLoader):
    """A loader that resumes at the position of the run, which its sampler reads.

    So it has no state. Without these methods Lightning would warn on resume that the batches start
    over.
    """

    def state_dict(self) -> dict[str, Any]:
        """An empty state: the Trainer saves the position in the run."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing: there is no state."""

"""Count the images that a distributed sampler repeats so that all processes have as many."""

from typing import Any

from torch.utils.data import BatchSampler, DataLoader, DistributedSampler


def num_repeated(loader: Any, batch_idx: int) -> int:
    """The number of images at the end of a batch that are repeated from other batches.

    Lightning gives users' loaders a DistributedSampler, which repeats a few images if their number
    is not divisible by the number of processes.

    >>> sampler = DistributedSampler(range(5), num_replicas=2, rank=1, shuffle=False)
    >>> loader = DataLoader(range(5), batch_size=2, sampler=sampler)
    >>> list(map(int, sampler)), [num_repeated(loader, index) for index in range(2)]
    ([1, 3, 0], [0, 1])
    """
    batches = loader.batch_sampler if isinstance(loader, DataLoader) else None
    sampler = getattr(batches, "sampler", None)
    if type(batches) is not BatchSampler or not isinstance(sampler, DistributedSampler):
        return 0
    num_own, size = len(sampler), batches.batch_size
    last_batch = (num_own // size if batches.drop_last else -(-num_own // size)) - 1
    if batch_idx != last_batch or (batches.drop_last and num_own % size):
        return 0
    # The processes take turns, so at most the last image of a process is repeated.
    last_index = sampler.rank + (num_own - 1) * sampler.num_replicas
    dataset: Any = sampler.dataset
    return int(last_index >= len(dataset))

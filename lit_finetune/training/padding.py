"""The pictures that a distributed sampler repeats so that all processes have as many."""

from typing import Any

from torch.utils.data import BatchSampler, DataLoader, DistributedSampler


def num_repeated(loader: Any, batch_idx: int) -> int:
    """How many pictures at the end of a batch another batch, or another process, shows as well.

    Lightning gives the loaders of a user a sampler of torch's, which repeats a few pictures where
    the processes do not divide them evenly.

    >>> sampler = DistributedSampler(range(5), num_replicas=2, rank=1, shuffle=False)
    >>> loader = DataLoader(range(5), batch_size=2, sampler=sampler)
    >>> list(map(int, sampler)), [num_repeated(loader, index) for index in range(2)]
    ([1, 3, 0], [0, 1])
    """
    batches = loader.batch_sampler if isinstance(loader, DataLoader) else None
    sampler = getattr(batches, "sampler", None)
    if type(batches) is not BatchSampler or not isinstance(sampler, DistributedSampler):
        return 0
    own, size = len(sampler), batches.batch_size
    last_batch = (own // size if batches.drop_last else -(-own // size)) - 1
    if batch_idx != last_batch or (batches.drop_last and own % size):
        return 0
    # The processes take turns, and at most the last one of a share comes after all pictures.
    last_place = sampler.rank + (own - 1) * sampler.num_replicas
    dataset: Any = sampler.dataset
    return int(last_place >= len(dataset))

"""All processes of a run must have the same pictures: each takes its share of them by number."""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import torch

from .dataset import Samples

Listing = tuple[int, str]
"""How many pictures a process has, and a digest of their names and labels."""


def listing_of(samples: Samples) -> Listing:
    """What two processes compare."""
    names = "\0".join(samples.names).encode("utf-8", "surrogateescape")
    labels = ",".join(map(str, samples.labels)).encode()
    return len(samples.labels), blake2b(names + b"\0\0" + labels, digest_size=16).hexdigest()


def refuse_other_pictures(samples: Samples, part: str) -> None:
    """Refuse pictures that are not those of the other processes; all of these must ask.

    Raises:
        ValueError: On some node there are others, or they are divided in another way.
    """
    listings: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(listings, listing_of(samples))
    if problem := difference(listings, part):
        raise ValueError(problem)


def difference(listings: Sequence[Listing], part: str) -> str | None:
    """What is wrong with the pictures of the processes, if they are not the same.

    >>> difference([(10, "a"), (10, "a")], "train") is None
    True
    """
    rank = next((i for i, listing in enumerate(listings) if listing != listings[0]), None)
    if rank is None:
        return None
    return (
        f"The processes have different {part} pictures: process 0 has {listings[0][0]:,}, process"
        f" {rank} has {listings[rank][0]:,}, and their names or labels differ. Each node needs the"
        " same pictures in folders of the same names, and, where they are split here, the same"
        " split file: copy it to each node, or delete it on all."
    )

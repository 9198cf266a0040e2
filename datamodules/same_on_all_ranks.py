"""Check that all processes of a run have the same images, which they share by index."""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import torch

from .dataset import Samples

SamplesDigest = tuple[int, str]
"""The number of images of a process, and a digest of their names and labels."""


def samples_digest(samples: Samples) -> SamplesDigest:
    """The digest that processes compare."""
    names = "\0".join(samples.names).encode("utf-8", "surrogateescape")
    labels = ",".join(map(str, samples.labels)).encode()
    return len(samples.labels), blake2b(names + b"\0\0" + labels, digest_size=16).hexdigest()


def refuse_different_samples(samples: Samples, part: str) -> None:
    """Refuse images that differ between processes; all processes must call this together.

    Raises:
        ValueError: A node has other images, or another split.
    """
    listings: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(listings, samples_digest(samples))
    if problem := difference(listings, part):
        raise ValueError(problem)


def difference(listings: Sequence[SamplesDigest], part: str) -> str | None:
    """The error message if processes have different images; None if they have the same.

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

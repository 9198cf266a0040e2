"""Randomness as a function of place: the same step of a run always draws the same numbers."""

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b

import torch


def derive_seed(*numbers: int) -> int:
    """A seed from whole numbers, such as a run's seed, an epoch and a picture's index.

    >>> derive_seed(0, 1, 2) == derive_seed(0, 1, 2) != derive_seed(0, 2, 1)
    True
    """
    text = ",".join(map(str, numbers)).encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little") >> 1


@contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """Let torch draw from a seed on the CPU, and go on afterwards as if nothing had been drawn."""
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(state)


def seed_device(seed: int, device: torch.device) -> None:
    """Seed what a device draws from, and the CPU; torch's own `manual_seed` seeds all there are.

    That takes longer than a small network's step where CUDA is built in and no GPU is there.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)

"""Seeds as functions of the position in a run: each step always draws the same numbers."""

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b

import torch


def derive_seed(*numbers: int) -> int:
    """A seed from integers, such as a run's seed, an epoch and an image's index.

    >>> derive_seed(0, 1, 2) == derive_seed(0, 1, 2) != derive_seed(0, 2, 1)
    True
    """
    text = ",".join(map(str, numbers)).encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little") >> 1


@contextmanager
def torch_seed(seed: int) -> Iterator[None]:
    """Seed torch on the CPU within a context, and restore its state afterwards."""
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(state)


def seed_device(seed: int, device: torch.device) -> None:
    """Seed a device and the CPU; torch's own `manual_seed` seeds all devices.

    That takes longer than a small network's step if torch has CUDA but there is no GPU.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)

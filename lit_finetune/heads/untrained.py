"""Whether a head is as it was made: nobody has trained it, and no file has filled it."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_MOST_NUMBERS = 4096
"""How many numbers of each parameter are kept to compare: training changes any of them."""


@dataclass(frozen=True, slots=True)
class NewHead:
    """A head with weights that were drawn at random, or that its maker has set."""

    name: str
    is_random: bool
    """False where it was given as a module or a callable, which may have been trained elsewhere."""
    begins: Mapping[str, Tensor]
    """The first numbers of each of its parameters, by the network's names."""

    def is_still_in(self, network: nn.Module) -> bool:
        """Whether the network's head has not changed since; False where it cannot be seen whole."""
        now = dict(network.named_parameters())
        return bool(self.begins) and all(
            name in now and is_same(now[name], begin) for name, begin in self.begins.items()
        )

    def __str__(self) -> str:
        """What is the matter, and what to do."""
        weights = "random weights" if self.is_random else "the weights that it was given with"
        return (
            f"The head `{self.name}` was never trained: it has {weights}, and what it says of a"
            " picture means nothing. Give the checkpoint of a training (`ckpt_path`, or"
            " `FinetuneClassifier.load_from_checkpoint`), or run `fit` first."
        )


def new_head(network: nn.Module, name: str, *, is_random: bool) -> NewHead:
    """Take note of a head that is new.

    >>> network = nn.Sequential(nn.Linear(2, 2))
    >>> head = new_head(network, "0", is_random=True)
    >>> before = head.is_still_in(network)
    >>> nn.init.zeros_(network[0].weight).sum().item(), before, head.is_still_in(network)
    (0.0, True, False)

    Args:
        network: It has the head.
        name: The head's name.
        is_random: Whether it was drawn here, and not given.
    """
    begins = {
        full: parameter.detach().flatten()[:_MOST_NUMBERS].cpu().clone()
        for full, parameter in network.named_parameters()
        if full.startswith(f"{name}.") and not parameter.is_meta
    }
    return NewHead(name, is_random, begins)


def is_same(parameter: nn.Parameter, begin: Tensor) -> bool:
    """Whether a parameter begins with such numbers, in whatever precision it is now."""
    now = parameter.detach()
    if type(now) is not Tensor or now.numel() < len(begin):  # a shard, or a part of a flat one
        return False
    numbers = now.flatten()[: len(begin)].cpu()
    return torch.equal(numbers, begin.to(numbers.dtype))

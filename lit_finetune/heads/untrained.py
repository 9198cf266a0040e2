"""Recognise a head that is still untrained: neither trained nor loaded from a file."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_MAX_ELEMENTS = 4096
"""The elements of each parameter that are compared: training changes all of them."""


@dataclass(frozen=True, slots=True)
class NewHead:
    """A new head, with random weights or those of the user's module."""

    name: str
    is_random: bool
    """False for a module or a callable of the user's, which may have been trained elsewhere."""
    initial_values: Mapping[str, Tensor]
    """The first elements of each of its parameters, by the network's names."""

    def is_unchanged_in(self, network: nn.Module) -> bool:
        """Whether the network's head has not changed since; False if it is sharded."""
        current = dict(network.named_parameters())
        return bool(self.initial_values) and all(
            name in current and begins_with(current[name], initial)
            for name, initial in self.initial_values.items()
        )

    def __str__(self) -> str:
        """The error message."""
        weights = "random weights" if self.is_random else "its initial weights"
        return (
            f"The head `{self.name}` was never trained: it has {weights}, and its predictions mean"
            " nothing. Give the checkpoint of a training (`ckpt_path`, or"
            " `FinetuneClassifier.load_from_checkpoint`), or run `fit` first."
        )


def new_head(network: nn.Module, name: str, *, is_random: bool) -> NewHead:
    """Record the initial values of a new head.

    >>> network = nn.Sequential(nn.Linear(2, 2))
    >>> head = new_head(network, "0", is_random=True)
    >>> before = head.is_unchanged_in(network)
    >>> nn.init.zeros_(network[0].weight).sum().item(), before, head.is_unchanged_in(network)
    (0.0, True, False)

    Args:
        network: The network with the head.
        name: The head's name.
        is_random: Whether its weights are random, not the user's.
    """
    initial_values = {
        parameter_name: parameter.detach().flatten()[:_MAX_ELEMENTS].cpu().clone()
        for parameter_name, parameter in network.named_parameters()
        if parameter_name.startswith(f"{name}.") and not parameter.is_meta
    }
    return NewHead(name, is_random, initial_values)


def begins_with(parameter: nn.Parameter, initial: Tensor) -> bool:
    """Whether a parameter begins with these values, in its current precision."""
    current = parameter.detach()
    is_part = type(current) is not Tensor or current.numel() < len(initial)
    if is_part:  # sharded, or flattened by FSDP1
        return False
    elements = current.flatten()[: len(initial)].cpu()
    return torch.equal(elements, initial.to(elements.dtype))


def new_head_in(
    state: Mapping[str, Tensor], network: nn.Module, name: str, *, is_random: bool
) -> NewHead:
    """Record the new head of a checkpoint, whose weights will be loaded into a network.

    Args:
        state: The network's part of the checkpoint, by the network's names.
        network: The network.
        name: The head's name.
        is_random: Whether its weights are random, not the user's.
    """
    initial_values = {
        parameter_name: state[parameter_name].detach().flatten()[:_MAX_ELEMENTS].cpu().clone()
        for parameter_name, _ in network.named_parameters()
        if parameter_name.startswith(f"{name}.") and parameter_name in state
    }
    return NewHead(name, is_random, initial_values)

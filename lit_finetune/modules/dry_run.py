"""Let a network see two blank pictures, to learn what only running it can tell."""

from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from lit_finetune.images.data_config import DataConfig
from lit_finetune.modules.eval_mode import eval_mode


def dry_run(network: nn.Module, data_config: DataConfig, *, purpose: str) -> Any:
    """What a network gives back for two blank pictures, in eval mode and without a gradient.

    Args:
        network: Its parameters say on which device and in which number type.
        data_config: How large the pictures are.
        purpose: What it is for, to complete "… had to be run".

    Raises:
        ValueError: The network does not take such pictures.
    """
    parameter = next((p for p in network.parameters() if p.is_floating_point()), torch.zeros(0))
    shape = (2, num_channels(network, data_config), *data_config.image_size)
    images = torch.zeros(shape, device=parameter.device, dtype=parameter.dtype)
    try:
        with torch.no_grad(), eval_mode(network):
            return network(images)
    except Exception as error:  # it is the user's code
        raise ValueError(
            f"{type(network).__name__} had to be run {purpose}, and does not run on pictures of "
            f"shape {tuple(shape[1:])}: {error}. If it expects others, let it say so with an "
            "attribute: `self.data_config = {'image_size': [32, 32], 'resize_size': 32}`."
        ) from error


def initialise(network: nn.Module, data_config: DataConfig) -> None:
    """Give lazy modules, as `nn.LazyLinear`, their sizes, by letting the network run once."""
    if any(isinstance(p, UninitializedParameter) for p in network.parameters()):
        dry_run(network, data_config, purpose="to learn the sizes of its lazy layers")
        if unseen := [n for n, p in network.named_parameters() if _is_unknown(p)]:
            raise ValueError(
                f"{type(network).__name__} does not run its lazy layers, so their sizes are "
                f"unknown: {', '.join(unseen)}."
            )


def _is_unknown(parameter: nn.Parameter) -> bool:
    return isinstance(parameter, UninitializedParameter)


def num_channels(network: nn.Module, data_config: DataConfig) -> int:
    """How many channels the first layer takes, if it is a convolution."""
    layers = (module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear))
    first = next(layers, None)
    known = isinstance(first, nn.Conv2d) and first.in_channels
    return known or len(data_config.mean)

"""Run a network on two blank images, to see its output and initialise lazy layers."""

from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from lit_finetune.images.data_config import DataConfig
from lit_finetune.modules.eval_mode import eval_mode


def dry_run(network: nn.Module, data_config: DataConfig, *, purpose: str) -> Any:
    """A network's output for two blank images, in eval mode and without gradients.

    Args:
        network: The images are on its device and in its dtype.
        data_config: The images' size and number of channels.
        purpose: The end of the message "… had to be run".

    Raises:
        ValueError: The network does not run on such images.
    """
    parameter = next((p for p in network.parameters() if p.is_floating_point()), torch.zeros(0))
    shape = (2, num_channels(network, data_config), *data_config.image_size)
    images = torch.zeros(shape, device=parameter.device, dtype=parameter.dtype)
    try:
        with torch.no_grad(), eval_mode(network):
            return network(images)
    except Exception as error:  # any error of the user's code
        raise ValueError(
            f"{type(network).__name__} had to be run {purpose}, and does not run on pictures of "
            f"shape {tuple(shape[1:])}: {error}. If it expects others, let it say so with an "
            "attribute: `self.data_config = {'image_size': [32, 32], 'resize_size': 32}`."
        ) from error


def init_lazy_layers(network: nn.Module, data_config: DataConfig) -> None:
    """Initialise lazy modules, such as `nn.LazyLinear`, by running the network once."""
    if any(isinstance(p, UninitializedParameter) for p in network.parameters()):
        dry_run(network, data_config, purpose="to learn the sizes of its lazy layers")
        if uninitialized := [n for n, p in network.named_parameters() if _is_uninitialized(p)]:
            raise ValueError(
                f"{type(network).__name__} does not run its lazy layers, so their sizes are "
                f"unknown: {', '.join(uninitialized)}."
            )


def _is_uninitialized(parameter: nn.Parameter) -> bool:
    return isinstance(parameter, UninitializedParameter)


def num_channels(network: nn.Module, data_config: DataConfig) -> int:
    """The input channels of the first layer; of the data config if it is no convolution."""
    layers = (module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear))
    first = next(layers, None)
    known = isinstance(first, nn.Conv2d) and first.in_channels
    return known or len(data_config.mean)

"""Adapt networks to images of another number of channels or another size."""

import math
from dataclasses import replace

from torch import Tensor, nn

from lit_finetune.backbones.position_embeddings import set_image_size
from lit_finetune.images.data_config import DataConfig
from lit_finetune.modules.dry_run import dry_run

_CHANNEL_ATTRIBUTES = ("num_channels", "in_chans", "in_channels", "num_input_channels")
"""The attributes in which networks store their number of channels."""


def adapt_input(
    network: nn.Module, config: DataConfig, *, in_chans: int | None, image_size: int | None
) -> DataConfig:
    """Adapt a network to a number of channels and an image size; return its new data config.

    The first convolution is adapted as in timm: its weights are summed for one channel, else
    repeated and scaled, so that the outputs keep their scale. Position embeddings are resampled.
    Afterwards the network is run once, to refuse it if it does not support the change.

    Args:
        network: It is changed in place.
        config: Its data config so far.
        in_chans: The number of channels; None to keep it.
        image_size: The side of the images; None to keep it.

    Raises:
        ValueError: The network cannot be adapted.
    """
    if in_chans is None and image_size is None:
        found = input_layer(network)
        is_grey = found is not None and found[1].in_channels == 1
        return config.with_channels(1) if is_grey else config
    if in_chans is not None:
        if in_chans != 3 and getattr(network, "transform_input", False):
            # torchvision's Inception and GoogLeNet convert from ImageNet's statistics to these.
            setattr(network, "transform_input", False)  # noqa: B010  # typed as a module
            config = replace(config, mean=(0.5,) * 3, std=(0.5,) * 3)
        adapt_channels(network, in_chans)
        config = config.with_channels(in_chans)
    if image_size is not None and config.image_size != (image_size, image_size):
        set_image_size(network, image_size)
        config = config.resized(image_size)
    dry_run(network, config, purpose="to see whether it takes `in_chans` and `image_size`")
    return config


def adapt_channels(network: nn.Module, in_chans: int) -> None:
    """Adapt the first convolution of a network to a number of channels.

    Raises:
        ValueError: There is no convolution, or it cannot be adapted.
    """
    found = input_layer(network)
    if found is None:
        raise ValueError(
            f"`in_chans` is {in_chans}, but {type(network).__name__} has no convolution that can "
            "be adapted: build it for as many channels, with `backbone_kwargs`."
        )
    name, layer = found
    old = layer.in_channels
    if old == in_chans or isinstance(layer, nn.LazyConv2d):
        return
    weight = layer._parameters.get("weight")
    if weight is None or layer.groups != 1:
        raise ValueError(
            f"`in_chans` is {in_chans}, but the first convolution, `{name}`, cannot be adapted: "
            "it is grouped, or its weight is computed from others."
        )
    adapted = adapt_channel_weights(weight.detach(), in_chans)
    layer.weight = nn.Parameter(adapted, requires_grad=weight.requires_grad)
    layer.in_channels = in_chans
    _update_channels(network, name, old, in_chans)


def input_layer(network: nn.Module) -> tuple[str, nn.Conv2d] | None:
    """The first convolution and its name: as timm declares it, or else the first registered."""
    config = getattr(network, "pretrained_cfg", None)
    declared = config.get("first_conv") if isinstance(config, dict) else None
    modules = dict(network.named_modules())
    first = modules.get(declared) if isinstance(declared, str) else None
    if isinstance(declared, str) and isinstance(first, nn.Conv2d):
        return declared, first
    return next(((n, m) for n, m in modules.items() if isinstance(m, nn.Conv2d)), None)


def adapt_channel_weights(weight: Tensor, in_chans: int) -> Tensor:
    """The weight (out, in, height, width) of a first convolution for another number of channels.

    >>> import torch
    >>> adapt_channel_weights(torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1), 1).flatten()
    tensor([6.])
    >>> adapt_channel_weights(torch.tensor([4.0, 8.0, 12.0]).view(1, 3, 1, 1), 4).flatten()
    tensor([3., 6., 9., 3.])
    """
    old = weight.shape[1]
    if in_chans == old:
        return weight
    full_precision = weight.float()  # half precision would round the sum
    if in_chans == 1:
        return full_precision.sum(dim=1, keepdim=True).to(weight.dtype)
    repeated = full_precision.repeat(1, math.ceil(in_chans / old), 1, 1)[:, :in_chans]
    return (repeated * (old / in_chans)).to(weight.dtype)


def _update_channels(network: nn.Module, name: str, old: int, new: int) -> None:
    """Update the number of channels in the attributes of the first convolution's parents."""
    parts = name.split(".")[:-1]
    paths = [".".join(parts[:length]) for length in range(len(parts) + 1)]
    parents = [network.get_submodule(path) for path in paths]
    for owner in [*parents, *(vars(module).get("config") for module in parents)]:
        for attribute in _CHANNEL_ATTRIBUTES:
            if getattr(owner, attribute, None) == old:
                setattr(owner, attribute, new)

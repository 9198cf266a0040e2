"""Append a head to a network that ends in features."""

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from lit_finetune.images.data_config import DataConfig
from lit_finetune.modules.dry_run import dry_run

Layout = Literal["vector", "tokens", "channels_first", "channels_last"]
"""Features (N, C), (N, L, C), (N, C, H, W) or (N, H, W, C)."""

_POOLED_DIMS: Mapping[Layout, tuple[int, ...]] = {
    "tokens": (1,),
    "channels_first": (2, 3),
    "channels_last": (1, 2),
}


class FeaturePool(nn.Module):
    """Pools a network's output to one vector for each image."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout

    def forward(self, output: Any) -> Tensor:
        """Features (N, C) of a network's output."""
        features = features_of(output)
        return features if self.layout == "vector" else features.mean(_POOLED_DIMS[self.layout])

    def extra_repr(self) -> str:
        """The layout, for `print`."""
        return self.layout


def append_head(network: nn.Module, data_config: DataConfig) -> tuple[nn.Sequential, str]:
    """A network of `features`, `pool` and `head`, and a description of the features.

    The head is a linear layer with one output, to be replaced. Feature maps are averaged over their
    positions, and so are tokens, unless the network returns a pooled output with them.

    >>> network, description = append_head(nn.Conv2d(3, 8, 1), DataConfig())
    >>> network.head, description
    (Linear(in_features=8, out_features=1, bias=True), 'channels-first features (2, 8, 224, 224)')

    Raises:
        ValueError: The network does not run on images as in the data config, or its output has no
            features.
    """
    output = dry_run(network, data_config, purpose="to learn what features it ends in")
    features = features_of(output)
    layout = _layout(network, features, data_config)
    width = features.shape[1 if layout in ("vector", "channels_first") else -1]
    head = nn.Linear(width, 1, device=features.device, dtype=features.dtype)
    parts = OrderedDict(features=network, pool=FeaturePool(layout), head=head)
    description = (
        f"{layout.replace('_', '-')} features {tuple(features.shape)}{_position_text(output)}"
    )
    return nn.Sequential(parts), description


def features_of(output: Any) -> Tensor:
    """The features in a network's output: the tensor, or the last of several.

    Of an output of Hugging Face transformers, the pooled output if there is one, else the last
    hidden state.

    >>> import torch
    >>> features_of({"layer3": torch.zeros(2, 4, 8, 8), "layer4": torch.zeros(2, 8, 4, 4)}).shape
    torch.Size([2, 8, 4, 4])

    Raises:
        ValueError: The output has no tensor.
    """
    if isinstance(output, Tensor):
        return output
    for name in ("pooler_output", "last_hidden_state"):
        features = getattr(output, name, None)
        if isinstance(features, Tensor):
            return features
    members = _members(output)
    if not members:
        raise ValueError(f"The network returned a {type(output).__name__}, not features.")
    return features_of(members[-1])


def _members(output: Any) -> Sequence[Any]:
    if isinstance(output, Mapping):
        return list(output.values())
    return output if isinstance(output, list | tuple) else []


def _position_text(output: Any) -> str:
    """The end of the description: which of several outputs was taken."""
    num_outputs = len(_members(output))
    is_named = hasattr(output, "last_hidden_state")
    return f", the last of {num_outputs} outputs" if num_outputs > 1 and not is_named else ""


def _layout(network: nn.Module, features: Tensor, data_config: DataConfig) -> Layout:
    """The layout of features; of a map, from the image's aspect ratio."""
    if features.dim() == 2:
        return "vector"
    if features.dim() == 3:
        return "tokens"
    if features.dim() != 4:
        raise ValueError(
            f"{type(network).__name__} returned features of the shape {tuple(features.shape)}. "
            "Supported are vectors (N, C), tokens (N, L, C) and maps (N, C, H, W)."
        )
    _, size_1, size_2, size_3 = features.shape
    image_size = data_config.image_size
    if_first = _aspect_difference(size_2, size_3, image_size)
    if_last = _aspect_difference(size_1, size_2, image_size)
    last = if_last < if_first
    if if_last == if_first:  # the shape does not tell: the last norm is over the channels
        norms = [m for m in network.modules() if isinstance(m, nn.LayerNorm | nn.BatchNorm2d)]
        last = bool(norms) and isinstance(norms[-1], nn.LayerNorm)
    return "channels_last" if last else "channels_first"


def _aspect_difference(height: int, width: int, image_size: tuple[int, int]) -> float:
    """How far a height and a width are from the image's aspect ratio."""
    return abs(math.log(height * image_size[1] / (width * image_size[0])))

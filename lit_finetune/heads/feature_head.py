"""A head for a network that has none, and ends in features."""

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from lit_finetune.images.data_config import DataConfig
from lit_finetune.modules.dry_run import dry_run

Layout = Literal["vector", "tokens", "channels_first", "channels_last"]
"""Features (N, C), (N, L, C), (N, C, H, W) or (N, H, W, C)."""

_MEAN_OVER: Mapping[Layout, tuple[int, ...]] = {
    "tokens": (1,),
    "channels_first": (2, 3),
    "channels_last": (1, 2),
}


class FeaturePool(nn.Module):
    """Makes one vector for each picture of what a network gave."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout

    def forward(self, output: Any) -> Tensor:
        """From a network's output to features (N, C)."""
        features = features_of(output)
        return features if self.layout == "vector" else features.mean(_MEAN_OVER[self.layout])

    def extra_repr(self) -> str:
        """What `print` shows."""
        return self.layout


def with_head(network: nn.Module, data_config: DataConfig) -> tuple[nn.Sequential, str]:
    """A network that ends in features, with `features`, `pool` and `head`; and what was found.

    The head is a linear layer with one output, to be replaced. A feature map is averaged over its
    places, and so are tokens, unless the network gives a pooled output beside them.

    >>> network, found = with_head(nn.Conv2d(3, 8, 1), DataConfig())
    >>> network.head, found
    (Linear(in_features=8, out_features=1, bias=True), 'channels-first features (2, 8, 224, 224)')

    Raises:
        ValueError: The network does not run on pictures as in the data config, or gives something
            that is no features.
    """
    output = dry_run(network, data_config, purpose="to learn what features it ends in")
    features = features_of(output)
    layout = _layout(network, features, data_config)
    width = features.shape[1 if layout in ("vector", "channels_first") else -1]
    head = nn.Linear(width, 1, device=features.device, dtype=features.dtype)
    parts = OrderedDict(features=network, pool=FeaturePool(layout), head=head)
    found = f"{layout.replace('_', '-')} features {tuple(features.shape)}{_beside(output)}"
    return nn.Sequential(parts), found


def features_of(output: Any) -> Tensor:
    """The features in a network's output: a tensor itself, or the last of several.

    Of an output of Hugging Face transformers it is the pooled one, if there is one, and else the
    last hidden state.

    >>> import torch
    >>> features_of({"layer3": torch.zeros(2, 4, 8, 8), "layer4": torch.zeros(2, 8, 4, 4)}).shape
    torch.Size([2, 8, 4, 4])

    Raises:
        ValueError: There is no tensor to be found.
    """
    if isinstance(output, Tensor):
        return output
    for name in ("pooler_output", "last_hidden_state"):
        found = getattr(output, name, None)
        if isinstance(found, Tensor):
            return found
    members = _members(output)
    if not members:
        raise ValueError(f"The network gave a {type(output).__name__}, where features should be.")
    return features_of(members[-1])


def _members(output: Any) -> Sequence[Any]:
    if isinstance(output, Mapping):
        return list(output.values())
    return output if isinstance(output, list | tuple) else []


def _beside(output: Any) -> str:
    """The end of what was found: that there were more of them."""
    more = len(_members(output))
    is_named = hasattr(output, "last_hidden_state")
    return f", the last of {more} outputs" if more > 1 and not is_named else ""


def _layout(network: nn.Module, features: Tensor, data_config: DataConfig) -> Layout:
    """How features lie, told from the picture's height and width in what they became of."""
    if features.dim() == 2:
        return "vector"
    if features.dim() == 3:
        return "tokens"
    if features.dim() != 4:
        raise ValueError(
            f"{type(network).__name__} gave features of the shape {tuple(features.shape)}: those "
            "of one vector (N, C), of tokens (N, L, C) or a map (N, C, H, W) can be used."
        )
    _, a, b, c = features.shape
    as_first, as_last = (
        _skew(high, wide, data_config.image_size) for high, wide in ((b, c), (a, b))
    )
    last = as_last < as_first
    if as_last == as_first:  # as many channels as places: the last norm is over the channels
        norms = [m for m in network.modules() if isinstance(m, nn.LayerNorm | nn.BatchNorm2d)]
        last = bool(norms) and isinstance(norms[-1], nn.LayerNorm)
    return "channels_last" if last else "channels_first"


def _skew(high: int, wide: int, image_size: tuple[int, int]) -> float:
    """How far a height and a width are from the picture's proportions."""
    return abs(math.log(high * image_size[1] / (wide * image_size[0])))

"""Named parameter groups: which parameters share a rate and a weight decay, as plain data."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from lit_finetune.blocks.block import Block
from lit_finetune.blocks.norm_layers import norm_parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class ParamGroup:
    """Parameters, by name, with the same learning rate and weight decay."""

    name: str
    """The block's name and the kind: `layer3/decay`, `layer3/no_decay`."""
    parameters: tuple[str, ...]
    lr_ratio: float
    """The group's learning rate as a multiple of the head's."""
    decays: bool
    """Whether weight decay applies: not to norms, biases and what the network exempts."""


def lr_ratios(
    num_blocks: int, *, backbone_lr_ratio: float, layer_decay: float | None
) -> list[float]:
    """The learning rate of each block, from the input to the head, as a multiple of the head's.

    The head has 1, the block before it `backbone_lr_ratio`, and each block further towards the
    input `layer_decay` times the rate of the one after it (as in BEiT, arXiv 2106.08254).

    >>> lr_ratios(4, backbone_lr_ratio=0.1, layer_decay=0.5)
    [0.025, 0.05, 0.1, 1.0]
    """
    decay = 1.0 if layer_decay is None else layer_decay
    depths = range(num_blocks - 2, -1, -1)
    return [backbone_lr_ratio * decay**depth for depth in depths] + [1.0] * (num_blocks > 0)


def make_param_groups(
    network: nn.Module,
    blocks: Sequence[Block],
    *,
    backbone_lr_ratio: float = 1.0,
    layer_decay: float | None = None,
) -> list[ParamGroup]:
    """Every parameter that may train in one named group, two for each block; the head's first.

    Args:
        network: The network with the blocks' parameters.
        blocks: From the input to the head.
        backbone_lr_ratio: The rate of the last block before the head, relative to the head's.
        layer_decay: The factor from one block to the one before it; None for no decay.
    """
    ratios = lr_ratios(len(blocks), backbone_lr_ratio=backbone_lr_ratio, layer_decay=layer_decay)
    exempt = no_decay_names(network)
    return [
        ParamGroup(
            name=f"{block.name}/{'decay' if decays else 'no_decay'}",
            parameters=chosen,
            lr_ratio=ratio,
            decays=decays,
        )
        for block, ratio in zip(reversed(blocks), reversed(ratios), strict=True)
        for decays in (True, False)
        if (chosen := tuple(name for name in block.free if (name not in exempt) == decays))
    ]


def no_decay_names(network: nn.Module) -> frozenset[str]:
    """The parameters without weight decay: norms, biases, and those that the network exempts.

    timm's networks exempt position embeddings and class tokens in `no_weight_decay()`.
    """
    declared = frozenset(
        f"{prefix}.{name}" if prefix else name
        for prefix, module in network.named_modules()
        if callable(getattr(module, "no_weight_decay", None))
        for name in module.no_weight_decay()
    )
    vectors = {
        name
        for name, parameter in network.named_parameters()
        if parameter.ndim <= 1 or name.endswith(".bias")
    }
    return declared | vectors | norm_parameters(network)

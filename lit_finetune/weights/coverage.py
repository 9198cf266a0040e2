"""Count the layers of a network that a weights file fills, in addition to its elements.

In AlexNet or VGG most elements are in one hidden linear layer; in a vision transformer hardly any
are in the patch embedding: the share of elements does not show that some layers are random.
"""

from collections.abc import Collection
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.conv import _ConvNd

from lit_finetune.backbones.position_embeddings import is_positional
from lit_finetune.blocks.block import list_blocks
from lit_finetune.modules.compiled import plain_name

MIN_LAYER_SHARE = 0.8
"""The least share of layers that has to be filled, unless `min_match` is lower.

Below it, a gap is allowed, too."""
_STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True, slots=True)
class FilledLayers:
    """The number of a backbone's layers that have all their tensors from a file."""

    filled: int = 0
    total: int = 0
    filled_convolutions: int = 0
    total_convolutions: int = 0
    gap: str = ""
    """A block without filled weights before one with some; empty if there is none."""

    def reach(self, share: float) -> bool:
        """Whether this share of all layers and of the convolutions is filled, without a gap.

        >>> FilledLayers(9, 10, filled_convolutions=0, total_convolutions=1).reach(0.8)
        False
        """
        return share <= self.share and not (self.gap and share >= MIN_LAYER_SHARE)

    @property
    def share(self) -> float:
        """The filled share of all layers, or of the convolutions, whichever is less."""
        pairs = (self.filled, self.total), (self.filled_convolutions, self.total_convolutions)
        return min(filled / total if total else 1.0 for filled, total in pairs)

    def __str__(self) -> str:
        text = f"{self.filled} of {self.total} layers"
        if self.total_convolutions:
            text += f", {self.filled_convolutions} of {self.total_convolutions} convolutions"
        return f"{text}, and nothing of `{self.gap}` before others" if self.gap else text


def filled_layers(
    network: nn.Module,
    matched: Collection[str],
    *,
    excluded: tuple[str, ...] = (),
    head_name: str | None = None,
) -> FilledLayers:
    """Count the layers whose parameters and running statistics are all filled.

    >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    >>> str(filled_layers(network, {"0.weight", "0.bias", "1.weight", "1.bias"}, excluded=("2.",)))
    '1 of 2 layers, 1 of 1 convolutions'

    Args:
        network: Its layers are its modules with parameters of their own.
        matched: The names of the filled tensors.
        excluded: The prefixes of names that do not belong to the backbone.
        head_name: The network's head; by default it is found.
    """
    is_filled, is_filled_convolution = [], []
    for path, module in network.named_modules():
        names = [f"{plain_name(path)}.{name}".lstrip(".") for name in _tensor_names(module)]
        names = [name for name in names if not name.startswith(excluded)]
        if names:
            is_filled.append(all(name in matched for name in names))
            if isinstance(module, _ConvNd):
                is_filled_convolution.append(is_filled[-1])
    return FilledLayers(
        filled=sum(is_filled),
        total=len(is_filled),
        filled_convolutions=sum(is_filled_convolution),
        total_convolutions=len(is_filled_convolution),
        gap=_first_gap(network, matched, head_name),
    )


def _first_gap(network: nn.Module, matched: Collection[str], head_name: str | None) -> str:
    """The first block without filled weights before a block with some; "" if there is none.

    The blocks behind a gap get the output of random layers. Unfilled last blocks are no gap: they
    learn as a new head does.
    """
    num_dims = {plain_name(name): each.ndim for name, each in network.named_parameters()}
    gaps: list[str] = []
    for block in list_blocks(network, head_name):
        names = [plain_name(name) for name in block.parameters]
        matrices = [name for name in names if num_dims.get(name, 0) > 1 and not is_positional(name)]
        weights = [name for name in matrices if name.endswith("weight")] or matrices
        if weights and block.name != "head":
            if any(name in matched for name in weights):
                if gaps:
                    return gaps[0]
            else:
                gaps.append(block.name)
    return ""


def _tensor_names(module: nn.Module) -> list[str]:
    """The names of a module's own parameters and running statistics."""
    parameters = [name for name, _ in module.named_parameters(recurse=False)]
    if not parameters:
        return []
    return parameters + [
        name for name, _ in module.named_buffers(recurse=False) if name in _STATISTICS
    ]

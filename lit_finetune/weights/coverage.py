"""How many layers of a network a weights file fills, beside how many of its numbers.

In AlexNet or VGG most numbers are in one hidden linear layer, in a vision transformer hardly any in
the patch embedding: a share of the numbers does not tell that every picture passes random layers.
"""

from collections.abc import Collection
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.conv import _ConvNd

from lit_finetune.backbones.position_embeddings import is_positional
from lit_finetune.blocks.block import list_blocks
from lit_finetune.modules.compiled import plain_name

ENOUGH = 0.8
"""The share of the layers that is asked for, unless less is asked for of the numbers.

Below it a gap is allowed too."""
_STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True, slots=True)
class FilledLayers:
    """How many layers of a backbone have all their tensors from a file."""

    filled: int = 0
    total: int = 0
    filled_convolutions: int = 0
    total_convolutions: int = 0
    gap: str = ""
    """A block of which nothing is filled, in front of one of which something is."""

    def are_at_least(self, share: float) -> bool:
        """Whether such a share of all layers is filled, and of the convolutions, without a gap.

        >>> FilledLayers(9, 10, filled_convolutions=0, total_convolutions=1).are_at_least(0.8)
        False
        """
        return share <= self.share and not (self.gap and share >= ENOUGH)

    @property
    def share(self) -> float:
        """The share of all layers that is filled, or of the convolutions, whichever is less."""
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
    aside: tuple[str, ...] = (),
    head_name: str | None = None,
) -> FilledLayers:
    """Count the layers whose parameters and running statistics are all filled.

    >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    >>> str(filled_layers(network, {"0.weight", "0.bias", "1.weight", "1.bias"}, aside=("2.",)))
    '1 of 2 layers, 1 of 1 convolutions'

    Args:
        network: A layer is a module of it with parameters of its own.
        matched: The names of the tensors that are filled.
        aside: The starts of the names that are no backbone's.
        head_name: The network's head; found if it is not given.
    """
    full, full_convolutions = [], []
    for path, module in network.named_modules():
        names = [f"{plain_name(path)}.{name}".lstrip(".") for name in _tensor_names(module)]
        names = [name for name in names if not name.startswith(aside)]
        if names:
            full.append(all(name in matched for name in names))
            if isinstance(module, _ConvNd):
                full_convolutions.append(full[-1])
    return FilledLayers(
        filled=sum(full),
        total=len(full),
        filled_convolutions=sum(full_convolutions),
        total_convolutions=len(full_convolutions),
        gap=_gap(network, matched, head_name),
    )


def _gap(network: nn.Module, matched: Collection[str], head_name: str | None) -> str:
    """The first block without a filled weight that stands before one with such; "" if none does.

    What comes behind it sees what random layers make of the pictures. Nothing else is asked of the
    last blocks: a new one there learns as a head does.
    """
    ranks = {plain_name(name): each.ndim for name, each in network.named_parameters()}
    gaps: list[str] = []
    for block in list_blocks(network, head_name):
        names = [plain_name(name) for name in block.parameters]
        matrices = [name for name in names if ranks.get(name, 0) > 1 and not is_positional(name)]
        weights = [name for name in matrices if name.endswith("weight")] or matrices
        if weights and block.name != "head":
            if any(name in matched for name in weights):
                if gaps:
                    return gaps[0]
            else:
                gaps.append(block.name)
    return ""


def _tensor_names(module: nn.Module) -> list[str]:
    """The module's own parameters, and statistics where it has such."""
    parameters = [name for name, _ in module.named_parameters(recurse=False)]
    if not parameters:
        return []
    return parameters + [
        name for name, _ in module.named_buffers(recurse=False) if name in _STATISTICS
    ]

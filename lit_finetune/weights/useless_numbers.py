"""Weights that fit by name and shape, and are of no training: nan, infinite, nothing but 0."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from lit_finetune.files.terminal_text import printable

_STATISTICS = ("running_mean", "running_var")


def refuse_useless(
    tensors: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
    *,
    path: str | Path,
    aside: tuple[str, ...] = (),
) -> None:
    """Raise if numbers are nan or infinite, or if all weights of the backbone are 0.

    Args:
        tensors: What is about to go into a network, by its names.
        targets: The tensors of the network. Of its buffers only statistics are looked at: others
            may be masks.
        path: The file that they are from.
        aside: The starts of the names that are no backbone's.

    Raises:
        ValueError: Names some of the tensors.
    """
    looked_at = {
        name: tensor
        for name, tensor in tensors.items()
        if isinstance(targets[name], nn.Parameter) or name.endswith(_STATISTICS)
    }
    wild = [name for name, tensor in looked_at.items() if not bool(tensor.isfinite().all())]
    if wild:
        some = f"{len(wild)}: {printable(', '.join(wild[:3]))}{', …' if len(wild) > 3 else ''}"
        raise ValueError(
            f"{printable(path)} has numbers that are nan or infinite in {some}, so the network was"
            " left as it is. The training that wrote it had come to nothing: take a checkpoint of"
            " before that."
        )
    weights = [t for n, t in looked_at.items() if t.ndim > 1 and not n.startswith(aside or (" ",))]
    if weights and not any(bool(tensor.any()) for tensor in weights):
        raise ValueError(
            f"{printable(path)} has nothing but 0 in all weights, so the network was left as it is:"
            " it was never filled, or is damaged. Download or save it again."
        )

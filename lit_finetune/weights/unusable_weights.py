"""Refuse weights that match but cannot be trained ones: nan, infinite, or all 0."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from lit_finetune.files.terminal_text import printable

_STATISTICS = ("running_mean", "running_var")


def refuse_unusable(
    tensors: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
    *,
    path: str | Path,
    excluded: tuple[str, ...] = (),
) -> None:
    """Raise if values are nan or infinite, or if all weights of the backbone are 0.

    Args:
        tensors: The tensors to load into a network, by its names.
        targets: The tensors of the network. Of its buffers only statistics are checked: others may
            be masks.
        path: The file of the tensors.
        excluded: The prefixes of names that do not belong to the backbone.

    Raises:
        ValueError: Names some of the tensors.
    """
    checked = {
        name: tensor
        for name, tensor in tensors.items()
        if isinstance(targets[name], nn.Parameter) or name.endswith(_STATISTICS)
    }
    nonfinite = [name for name, tensor in checked.items() if not bool(tensor.isfinite().all())]
    if nonfinite:
        names = printable(", ".join(nonfinite[:3])) + (", …" if len(nonfinite) > 3 else "")
        raise ValueError(
            f"{printable(path)} has numbers that are nan or infinite in {len(nonfinite)}: {names},"
            " so the network was left as it is. The training that wrote it had diverged: take a"
            " checkpoint of before that."
        )
    weights = [t for n, t in checked.items() if t.ndim > 1 and not n.startswith(excluded or (" ",))]
    if weights and not any(bool(tensor.any()) for tensor in weights):
        raise ValueError(
            f"{printable(path)} has nothing but 0 in all weights, so the network was left as it is:"
            " it was never filled, or is damaged. Download or save it again."
        )

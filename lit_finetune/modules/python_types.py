"""Say which type an argument has to have, where another one would fail in torch's own words."""

from os import PathLike
from typing import Any

from torch import Tensor, nn


def refuse_other_than_module(network: Any) -> None:
    """Refuse what is no network.

    Raises:
        TypeError: Says how to come to one.
    """
    if not isinstance(network, nn.Module):
        kind = f"the class {network.__name__}" if isinstance(network, type) else repr(network)
        raise TypeError(
            f"A network is needed, a `torch.nn.Module`, but got {kind}. Build it first, such as"
            " `torchvision.models.resnet18()`, or `timm.create_model(name)`."
        )


def refuse_other_than_tensors(**arguments: Any) -> None:
    """Refuse features or labels that are no tensors.

    Raises:
        TypeError: Names the argument.
    """
    for name, value in arguments.items():
        if value is not None and not isinstance(value, Tensor):
            raise TypeError(
                f"`{name}` is a tensor, but got a {type(value).__name__}: use `torch.as_tensor`."
            )


def refuse_other_than_path(path: Any) -> None:
    """Refuse what names no file.

    Raises:
        TypeError: Says what else to call.
    """
    if not isinstance(path, str | PathLike):
        raise TypeError(
            f"`path` is the path of a weights file, but got a {type(path).__name__}. A state dict"
            " that is there goes into a network with `network.load_state_dict(state)`."
        )

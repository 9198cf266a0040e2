"""Check the types of arguments that would otherwise fail with torch's own messages."""

from os import PathLike
from typing import Any

from torch import Tensor, nn


def refuse_other_than_module(network: Any) -> None:
    """Refuse a value that is not a network.

    Raises:
        TypeError: Says how to build one.
    """
    if not isinstance(network, nn.Module):
        kind = f"the class {network.__name__}" if isinstance(network, type) else repr(network)
        raise TypeError(
            f"A network is needed, a `torch.nn.Module`, but got {kind}. Build it first, such as"
            " `torchvision.models.resnet18()`, or `timm.create_model(name)`."
        )


def refuse_other_than_tensors(**arguments: Any) -> None:
    """Refuse features or labels that are not tensors.

    Raises:
        TypeError: Names the argument.
    """
    for name, value in arguments.items():
        if value is not None and not isinstance(value, Tensor):
            raise TypeError(
                f"`{name}` is a tensor, but got a {type(value).__name__}: use `torch.as_tensor`."
            )


def refuse_other_than_path(path: Any) -> None:
    """Refuse a value that is not a path.

    Raises:
        TypeError: Says how to load a state dict.
    """
    if not isinstance(path, str | PathLike):
        raise TypeError(
            f"`path` is the path of a weights file, but got a {type(path).__name__}. Load a state"
            " dict with `network.load_state_dict(state)`."
        )

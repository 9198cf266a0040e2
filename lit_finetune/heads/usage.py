"""What a network makes of its head's output, and whether a linear layer can be fitted to that."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrize import is_parametrized

from lit_finetune.heads.find import Layer
from lit_finetune.modules.outputs import logits_of

_LINEAR = (
    "A linear probe fits a head that is one `nn.Linear`, or a 1x1 `nn.Conv2d`, with a bias. Use"
    " head='linear', or let the head train in epochs of its own."
)


@dataclass(frozen=True, slots=True)
class HeadUse:
    """What a network makes of its head's output, to give logits."""

    averages: bool = False
    """Whether the head sees many places, or tokens, of which the mean is taken."""
    rectifies: bool = False
    """Whether a ReLU comes before that mean, as in SqueezeNet."""


def linear_head(network: nn.Module, head_name: str) -> Layer:
    """A network's head, if it is one linear layer with a bias.

    Raises:
        ValueError: It is something else; the message says what to do.
    """
    head = network.get_submodule(head_name)
    if not isinstance(head, Layer):
        raise ValueError(f"The head `{head_name}` is of type {type(head).__name__}. {_LINEAR}")
    if is_parametrized(head) or not isinstance(vars(head)["_parameters"].get("weight"), Tensor):
        raise ValueError(f"The weights of the head `{head_name}` are computed. {_LINEAR}")
    if head.bias is None:
        raise ValueError(f"The head `{head_name}` has no bias. {_LINEAR}")
    if isinstance(head, nn.Conv2d) and not _is_pointwise(head):
        raise ValueError(f"The head `{head_name}` sees more than one place: {head}. {_LINEAR}")
    return head


@torch.no_grad()
def find_head_use(
    network: nn.Module, head_name: str, images: Tensor, *, scale: float = 4.0
) -> HeadUse:
    """What a network makes of its head's output, found by putting other numbers in its place.

    Args:
        network: In eval mode.
        head_name: Its linear head.
        images: Some pictures; they stay as they are.
        scale: How far from 0 the scores are that are tried.

    Raises:
        ValueError: The logits are nothing that a linear layer could be fitted to.
    """
    head = linear_head(network, head_name)
    drawn: list[Tensor] = []
    is_linear: list[bool] = []

    def replace(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        plain = _apply(head, over_places(args[0], head))
        is_linear.append(_is_close(over_places(output, head), plain, loosely=True))
        drawn.append(_draw_scores(output, head, scale))
        return drawn[-1].clone()  # what comes behind the head may work in place

    handle = head.register_forward_hook(replace)
    try:
        with torch.compiler.set_stance("force_eager"):
            logits = logits_of(network(images.clone()))
    finally:
        handle.remove()
    if len(drawn) != 1 or not is_linear[0]:
        what = "does more than its weights say" if drawn else "is not used"
        what = f"is used {len(drawn)} times" if len(drawn) > 1 else what
        raise ValueError(f"The head `{head_name}` {what}. {_LINEAR}")
    return _use_of(over_places(drawn[0], head), logits, head_name)


def _draw_scores(output: Tensor, head: Layer, scale: float) -> Tensor:
    """Numbers in the place of a head's output, whose means over places reach to `scale` as well."""
    generator = torch.Generator().manual_seed(0)
    shape = list(output.shape)
    places = range(2, len(shape)) if isinstance(head, nn.Conv2d) else range(1, len(shape) - 1)
    of_picture = [1 if axis in places else size for axis, size in enumerate(shape)]
    parts = [2 * torch.rand(size, generator=generator) - 1 for size in (of_picture, shape)]
    return (scale * (parts[0] + parts[1])).to(output)


def over_places(features: Tensor, head: Layer) -> Tensor:
    """What goes into a linear head, or comes out, as (N, places, features)."""
    if isinstance(head, nn.Conv2d):
        features = features.movedim(1, -1)
    return features.reshape(len(features), -1, features.shape[-1])


def _is_pointwise(head: nn.Conv2d) -> bool:
    sizes = (head.kernel_size, head.stride, head.dilation, head.groups)
    return sizes == ((1, 1), (1, 1), (1, 1), 1) and head.padding in ((0, 0), "valid", "same")


def _apply(head: Layer, places: Tensor) -> Tensor:
    return functional.linear(places, head.weight.flatten(1), head.bias)


def _use_of(output: Tensor, logits: Tensor, head_name: str) -> HeadUse:
    """What gives these logits from a head's output (N, places, C)."""
    rectified = output.relu()
    if output.shape[1] == 1 and _is_close(logits, output[:, 0]):
        return HeadUse()
    if _is_close(logits, output.mean(dim=1)):
        return HeadUse(averages=True)
    if _is_close(logits, rectified.mean(dim=1)):
        if logits.dtype.itemsize < 4:
            raise ValueError(
                f"A ReLU follows the head `{head_name}`, so a bias has to keep all logits above 0,"
                f" where {logits.dtype} cannot tell them apart. Fit the probe in precision"
                " '32-true', or let the head train in epochs of its own."
            )
        return HeadUse(averages=True, rectifies=True)
    raise ValueError(
        f"The logits are neither what the head `{head_name}` gives nor its mean over places, with"
        " or without a ReLU before it, so that no linear layer can be fitted to them: let the head"
        " train in epochs of its own."
    )


def _is_close(one: Tensor, other: Tensor, *, loosely: bool = False) -> bool:
    """Whether two results are the same but for rounding.

    Args:
        one: Of any shape.
        other: To be like it.
        loosely: Whether the two come of products, which a GPU may round as in half precision.
    """
    if one.shape != other.shape:
        return False
    loosely |= one.dtype.itemsize < 4
    within = 2e-2 if loosely else 1e-4
    size = max(1.0, float(other.abs().max()))
    return torch.allclose(one.float(), other.float(), rtol=within, atol=within * size)

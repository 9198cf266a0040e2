"""How a network computes its logits from its head's output; whether a probe can be fitted."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrize import is_parametrized

from lit_finetune.heads.find import Layer
from lit_finetune.modules.outputs import logits_of

_LINEAR_ONLY = (
    "A linear probe fits a head that is one `nn.Linear`, or a 1x1 `nn.Conv2d`, with a bias. Use"
    " head='linear', or let the head train in epochs of its own."
)


@dataclass(frozen=True, slots=True)
class HeadUse:
    """How a network computes its logits from its head's output."""

    pools: bool = False
    """Whether the mean over the head's positions or tokens is taken."""
    applies_relu: bool = False
    """Whether a ReLU precedes that mean, as in SqueezeNet."""


def linear_head(network: nn.Module, head_name: str) -> Layer:
    """A network's head, if it is one linear layer with a bias.

    Raises:
        ValueError: The head is something else; the message says what to do.
    """
    head = network.get_submodule(head_name)
    if not isinstance(head, Layer):
        raise ValueError(f"The head `{head_name}` is of type {type(head).__name__}. {_LINEAR_ONLY}")
    if is_parametrized(head) or not isinstance(vars(head)["_parameters"].get("weight"), Tensor):
        raise ValueError(f"The weights of the head `{head_name}` are computed. {_LINEAR_ONLY}")
    if head.bias is None:
        raise ValueError(f"The head `{head_name}` has no bias. {_LINEAR_ONLY}")
    if isinstance(head, nn.Conv2d) and not _is_pointwise(head):
        raise ValueError(
            f"The head `{head_name}` sees more than one position: {head}. {_LINEAR_ONLY}"
        )
    return head


@torch.no_grad()
def find_head_use(
    network: nn.Module, head_name: str, images: Tensor, *, scale: float = 4.0
) -> HeadUse:
    """Find how a network computes its logits, by replacing its head's output by random scores.

    Args:
        network: A network in eval mode.
        head_name: Its linear head.
        images: Some images; they are not changed.
        scale: The range of the random scores.

    Raises:
        ValueError: A linear layer cannot be fitted to the logits.
    """
    head = linear_head(network, head_name)
    replaced: list[Tensor] = []
    is_linear: list[bool] = []

    def replace(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        expected = _apply_linear(head, to_positions(args[0], head))
        is_linear.append(_is_close(to_positions(output, head), expected, low_precision=True))
        replaced.append(_random_scores(output, head, scale))
        return replaced[-1].clone()  # later layers may work in place

    handle = head.register_forward_hook(replace)
    try:
        with torch.compiler.set_stance("force_eager"):
            logits = logits_of(network(images.clone()))
    finally:
        handle.remove()
    if len(replaced) != 1 or not is_linear[0]:
        problem = "is not a linear function of its input" if replaced else "is not used"
        problem = f"is used {len(replaced)} times" if len(replaced) > 1 else problem
        raise ValueError(f"The head `{head_name}` {problem}. {_LINEAR_ONLY}")
    return _match_use(to_positions(replaced[0], head), logits, head_name)


def _random_scores(output: Tensor, head: Layer, scale: float) -> Tensor:
    """Random scores of the shape of a head's output; their means over positions are random, too."""
    generator = torch.Generator().manual_seed(0)
    shape = list(output.shape)
    positions = range(2, len(shape)) if isinstance(head, nn.Conv2d) else range(1, len(shape) - 1)
    per_image_shape = [1 if axis in positions else size for axis, size in enumerate(shape)]
    parts = [2 * torch.rand(size, generator=generator) - 1 for size in (per_image_shape, shape)]
    return (scale * (parts[0] + parts[1])).to(output)


def to_positions(features: Tensor, head: Layer) -> Tensor:
    """The input or output of a linear head as (N, positions, features)."""
    if isinstance(head, nn.Conv2d):
        features = features.movedim(1, -1)
    return features.reshape(len(features), -1, features.shape[-1])


def _is_pointwise(head: nn.Conv2d) -> bool:
    sizes = (head.kernel_size, head.stride, head.dilation, head.groups)
    return sizes == ((1, 1), (1, 1), (1, 1), 1) and head.padding in ((0, 0), "valid", "same")


def _apply_linear(head: Layer, positions: Tensor) -> Tensor:
    return functional.linear(positions, head.weight.flatten(1), head.bias)


def _match_use(output: Tensor, logits: Tensor, head_name: str) -> HeadUse:
    """The use that computes these logits from a head's output (N, positions, C)."""
    rectified = output.relu()
    if output.shape[1] == 1 and _is_close(logits, output[:, 0]):
        return HeadUse()
    if _is_close(logits, output.mean(dim=1)):
        return HeadUse(pools=True)
    if _is_close(logits, rectified.mean(dim=1)):
        if logits.dtype.itemsize < 4:
            raise ValueError(
                f"A ReLU follows the head `{head_name}`, so a bias has to keep all logits above 0,"
                f" where {logits.dtype} is too coarse for them. Fit the probe in precision"
                " '32-true', or let the head train in epochs of its own."
            )
        return HeadUse(pools=True, applies_relu=True)
    raise ValueError(
        f"The logits are neither the output of the head `{head_name}` nor its mean over positions,"
        " with or without a ReLU before it, so no linear layer can be fitted to them: let the head"
        " train in epochs of its own."
    )


def _is_close(actual: Tensor, expected: Tensor, *, low_precision: bool = False) -> bool:
    """Whether two tensors are equal except for rounding.

    Args:
        actual: Of any shape.
        expected: Unequal if its shape differs.
        low_precision: Whether they are results of products, which a GPU may round as in half
            precision.
    """
    if actual.shape != expected.shape:
        return False
    low_precision |= actual.dtype.itemsize < 4
    tolerance = 2e-2 if low_precision else 1e-4
    size = max(1.0, float(expected.abs().max()))
    return torch.allclose(actual.float(), expected.float(), rtol=tolerance, atol=tolerance * size)

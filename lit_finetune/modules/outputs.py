"""The output of a network: logits, and auxiliary logits."""

from typing import Any

from torch import Tensor


def logits_of(output: Any) -> Tensor:
    """The logits (N, num_classes) in the output of a classifier's forward.

    The output is a tensor, or an object with an attribute `logits`, as of GoogLeNet, Inception and
    Hugging Face networks.

    Raises:
        TypeError: The output is neither.
    """
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"The network returned {_describe(output)}, where its logits were expected: a tensor, "
            "or an object with a tensor `logits`. To append a head to an output that is "
            'features, give `head_name=""`.'
        )
    return logits


def check_logits(logits: Tensor, num_classes: int, head_name: str) -> None:
    """Refuse an output that is not one logit for each class of each image.

    Raises:
        ValueError: The network's output is not the output of its head.
    """
    if logits.dim() != 2 or logits.shape[1] != num_classes:
        raise ValueError(
            f"The network returned an output of shape {tuple(logits.shape)}, where logits (N, "
            f"{num_classes}) were expected: the output is not that of its head `{head_name}`. "
            'Name the right module with `head_name=`, or give `head_name=""` to append a '
            "head to an output that is features."
        )


def auxiliary_logits(output: Any) -> tuple[Tensor, ...]:
    """The logits of auxiliary heads, which GoogLeNet and Inception return in training mode."""
    if not (isinstance(output, tuple) and hasattr(output, "_fields")):
        return ()
    names = [name for name in output._fields if name.startswith("aux")]
    return tuple(getattr(output, name) for name in names if getattr(output, name) is not None)


def weighted_auxiliary_logits(output: Any) -> tuple[tuple[float, Tensor], ...]:
    """The logits of auxiliary heads, each with the weight of its loss relative to the main one.

    The weights are the published ones: 0.3 for GoogLeNet (arXiv 1409.4842), 0.4 for Inception and
    all other networks with such heads.
    """
    weight = 0.3 if type(output).__name__.endswith("GoogLeNetOutputs") else 0.4
    return tuple((weight, logits) for logits in auxiliary_logits(output))


def _describe(output: Any) -> str:
    if isinstance(output, tuple | list):
        return f"a {type(output).__name__} of {len(output)}"
    if isinstance(output, dict):
        return f"a {type(output).__name__} of {', '.join(map(str, output))}"
    return f"a {type(output).__name__}"

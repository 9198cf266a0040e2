"""What a network gives back: logits, and sometimes more beside them."""

from typing import Any

from torch import Tensor


def logits_of(output: Any) -> Tensor:
    """The logits (N, num_classes) in what a classifier's forward returned.

    A tensor is taken as it is; GoogLeNet, Inception and the networks of Hugging Face hold it as
    `logits`.

    Raises:
        TypeError: The output is neither.
    """
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"The network returned {_described(output)}, where its logits were expected: a tensor, "
            "or an object that holds one as `logits`. To append a head to an output that is "
            'features, give `head_name=""`.'
        )
    return logits


def check_logits(logits: Tensor, num_classes: int, head_name: str) -> None:
    """Refuse an output that is not one score for each class, of each picture.

    Raises:
        ValueError: The network's output is not what its head gives.
    """
    if logits.dim() != 2 or logits.shape[1] != num_classes:
        raise ValueError(
            f"The network gave an output of shape {tuple(logits.shape)}, where logits (N, "
            f"{num_classes}) were expected: its head `{head_name}` is not where the output comes "
            'from. Name the right module with `head_name=`, or give `head_name=""` to append a '
            "head to an output that is features."
        )


def auxiliary_of(output: Any) -> tuple[Tensor, ...]:
    """The logits of auxiliary heads, which GoogLeNet and Inception return when they train."""
    if not (isinstance(output, tuple) and hasattr(output, "_fields")):
        return ()
    named = [name for name in output._fields if name.startswith("aux")]
    return tuple(getattr(output, name) for name in named if getattr(output, name) is not None)


def weighted_auxiliary_of(output: Any) -> tuple[tuple[float, Tensor], ...]:
    """The logits of auxiliary heads, each with the weight of its loss beside that of the logits.

    The weights are those that the networks were published with: 0.3 for GoogLeNet (arXiv
    1409.4842), and 0.4 for Inception, as for whatever else has such heads.
    """
    weight = 0.3 if type(output).__name__.endswith("GoogLeNetOutputs") else 0.4
    return tuple((weight, logits) for logits in auxiliary_of(output))


def _described(output: Any) -> str:
    if isinstance(output, tuple | list):
        return f"a {type(output).__name__} of {len(output)}"
    if isinstance(output, dict):
        return f"a {type(output).__name__} of {', '.join(map(str, output))}"
    return f"a {type(output).__name__}"

"""Choose the network among several state dicts in a file."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from lit_finetune.files.diagnose import NoWeightsError

_T = TypeVar("_T")

# State dicts with the names and shapes of a network that are no trained network: importances (EWC),
# pruning masks, gradients, moments, initial weights.
_UNTRAINED = re.compile(
    r"(^|[._])(fishers?|hessian|importances?|omegas?|saliency|masks?|grads?|gradients?|moments?|"
    r"exp_avg(_sq)?|momentum_buffer|momentum|velocity|init|initial|old|prev|previous|deltas?|diff)"
    r"([._]|$)"
)
_NETWORK_KEYS = {
    *("model", "model_state", "model_state_dict", "model_weights", "module", "net", "network"),
    *("backbone", "ema", "net_state_dict", "params", "state", "state_dict", "weights"),
}


def is_untrained(label: str) -> bool:
    """Whether an entry or prefix names something other than a trained network.

    >>> [label for label in ("fisher", "init_state", "model", "masked_ae") if is_untrained(label)]
    ['fisher', 'init_state']
    """
    return bool(_UNTRAINED.search(label.lower()))


def choose_state_dict(
    candidates: Sequence[_T],
    *,
    label: Callable[[_T], str],
    tensors: Callable[[_T], Mapping[str, Tensor]],
) -> _T:
    """The candidate that is the network; the first one if all are equal.

    Args:
        candidates: The best one first.
        label: Returns a candidate's prefix in the file, such as `model.module.`.
        tensors: Returns a candidate's tensors, by comparable names.

    Raises:
        NoWeightsError: They differ, and their names do not show which one is the network.
    """
    first, *others = candidates
    if not others or all(_is_same(tensors(first), tensors(other)) for other in others):
        return first
    named = [each for each in candidates if _is_network(label(each))]
    if len(named) == 1:
        return named[0]
    labels = [label(each).strip(".") or "the file itself" for each in candidates]
    key = labels[0].partition(".")[0]
    raise NoWeightsError(
        f"holds several networks that fit, and their names do not tell which is meant:"
        f" {', '.join(map(repr, labels))}. Save the right one alone and load that file, such as"
        f' `torch.save(torch.load("…", weights_only=True)[{key!r}], "weights.pth")`.'
    )


def _is_network(label: str) -> bool:
    parts = [part for part in label.lower().split(".") if part]
    return all(part in _NETWORK_KEYS for part in parts)


def _is_same(first: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether all tensors that both have are equal."""
    shared = [(tensor, other[name]) for name, tensor in first.items() if name in other]
    return all(a is b or (a.dtype == b.dtype and torch.equal(a, b)) for a, b in shared)

"""Which of several state dicts in a file is the network, where more than one could be."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from lit_finetune.files.diagnose import NoWeightsError

T = TypeVar("T")

# With the names and shapes of a network, but no network: importances (EWC), masks of pruning,
# gradients, moments, and the weights before a training.
_NOT_TRAINED = re.compile(
    r"(^|[._])(fishers?|hessian|importances?|omegas?|saliency|masks?|grads?|gradients?|moments?|"
    r"exp_avg(_sq)?|momentum_buffer|momentum|velocity|init|initial|old|prev|previous|deltas?|diff)"
    r"([._]|$)"
)
_NETWORK = {
    *("model", "model_state", "model_state_dict", "model_weights", "module", "net", "network"),
    *("backbone", "ema", "net_state_dict", "params", "state", "state_dict", "weights"),
}


def is_not_trained(label: str) -> bool:
    """Whether an entry or prefix names something else than a trained network.

    >>> [label for label in ("fisher", "init_state", "model", "masked_ae") if is_not_trained(label)]
    ['fisher', 'init_state']
    """
    return bool(_NOT_TRAINED.search(label.lower()))


def choose(
    candidates: Sequence[T],
    *,
    label: Callable[[T], str],
    tensors: Callable[[T], Mapping[str, Tensor]],
) -> T:
    """The one of several candidates that is the network, the first if all are the same.

    Args:
        candidates: The best one first.
        label: Under what each stands in the file, such as `model.module.`.
        tensors: What each holds, by names that are comparable.

    Raises:
        NoWeightsError: Their names do not tell, and they differ.
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
    return all(part in _NETWORK for part in parts)


def _is_same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether all tensors that both have are equal."""
    shared = [(tensor, other[name]) for name, tensor in one.items() if name in other]
    return all(a is b or (a.dtype == b.dtype and torch.equal(a, b)) for a, b in shared)

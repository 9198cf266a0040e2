"""Refuse options of an optimizer that no training can be right with."""

from collections.abc import Iterable, Iterator
from math import isfinite, isnan
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

_FINITE = frozenset(
    ("lr", "initial_lr", "weight_decay", "momentum", "dampening", "betas", "eps", "alpha", "rho")
)
"""Options that infinity makes no sense for; others may have it for "no limit"."""


def refuse_nonfinite_options(optimizers: Iterable[Optimizer]) -> None:
    """Refuse parameter groups with a rate or another option that is nan or infinite.

    >>> import torch
    >>> refuse_nonfinite_options([torch.optim.SGD([torch.zeros(1)], lr=float("inf"))])
    Traceback (most recent call last):
    ValueError: The optimizer SGD has options that are not finite: lr=inf. Give numbers.

    Raises:
        ValueError: Names them.
    """
    for optimizer in optimizers:
        named = dict.fromkeys(
            f"{key}={value}"
            for group in optimizer.param_groups
            for key, value in group.items()
            if any(isnan(n) or (key in _FINITE and not isfinite(n)) for n in _numbers(value))
        )
        if named:
            raise ValueError(
                f"The optimizer {type(optimizer).__name__} has options that are not finite:"
                f" {', '.join(named)}. Give numbers."
            )


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, tuple):
        for each in value:
            yield from _numbers(each)
    elif isinstance(value, float):
        yield value
    elif isinstance(value, Tensor) and value.numel() == 1 and not value.is_meta:
        yield float(value)

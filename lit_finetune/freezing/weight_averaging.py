"""Hold what is frozen where others average weights, and gather statistics anew for the average."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


@dataclass(frozen=True, slots=True)
class Statistics:
    """The buffers of a frozen normalisation layer, and what was in them."""

    layer: nn.Module
    buffers: dict[str, Tensor]
    values: dict[str, Tensor]


def take_statistics(frozen: Iterable[nn.Module]) -> list[Statistics]:
    """Take note of the running statistics that frozen modules keep."""
    return [
        Statistics(module, buffers, {name: buffer.clone() for name, buffer in buffers.items()})
        for module in frozen
        if "running_mean" in (buffers := dict(module.named_buffers(recurse=False)))
    ]


def restore_statistics(statistics: Iterable[Statistics]) -> None:
    """Give layers their statistics back where someone has put fresh ones in their place.

    StochasticWeightAveraging does, to gather them anew; a layer in eval mode would gather none.
    """
    for noted in statistics:
        if noted.layer.running_mean is not noted.buffers["running_mean"]:
            for name, buffer in noted.buffers.items():
                buffer.copy_(noted.values[name])
                setattr(noted.layer, name, buffer)


def average_exactly(model: AveragedModel) -> None:
    """Let the average of what never changes be just that.

    A moving average, `0.9999 * average + 0.0001 * value`, drifts away from a constant by up to
    6e-4 of it, since what it would add is rounded off; and a whole number shrinks each time.
    """
    if model.avg_fn is not None:
        model.avg_fn = _exact(model.avg_fn)


def copy_into_averages(module: nn.Module, callbacks: Iterable[Any]) -> None:
    """Bring the copies that callbacks took of a module to average its weights up to date.

    They were taken before the first step, and are shown in its place until there is an average.
    """
    for callback in callbacks:
        average = getattr(callback, "_average_model", None)  # of WeightAveraging and of SWA
        copied = average.module if isinstance(average, AveragedModel) else average
        if isinstance(copied, nn.Module):
            copied.load_state_dict(module.state_dict())


_Average = Callable[[Tensor, Tensor, Any], Tensor]


def _exact(average: _Average) -> _Average:
    def exact(averaged: Tensor, current: Tensor, count: Any) -> Tensor:
        return torch.where(averaged == current, averaged, average(averaged, current, count))

    return exact

"""Keep frozen weights and statistics under weight averaging."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


@dataclass(frozen=True, slots=True)
class Statistics:
    """The buffers of a frozen normalisation layer, and their values."""

    layer: nn.Module
    buffers: dict[str, Tensor]
    values: dict[str, Tensor]


def save_statistics(frozen: Iterable[nn.Module]) -> list[Statistics]:
    """Save the running statistics of frozen modules."""
    return [
        Statistics(module, buffers, {name: buffer.clone() for name, buffer in buffers.items()})
        for module in frozen
        if "running_mean" in (buffers := dict(module.named_buffers(recurse=False)))
    ]


def restore_statistics(statistics: Iterable[Statistics]) -> None:
    """Restore the statistics of layers whose buffers were replaced.

    StochasticWeightAveraging replaces them to collect new ones; a layer in eval mode would not.
    """
    for saved in statistics:
        if saved.layer.running_mean is not saved.buffers["running_mean"]:
            for name, buffer in saved.buffers.items():
                buffer.copy_(saved.values[name])
                setattr(saved.layer, name, buffer)


def average_exactly(model: AveragedModel) -> None:
    """Make the average of a constant exactly that constant.

    A moving average, `0.9999 * average + 0.0001 * value`, drifts from a constant by up to 6e-4 of
    it by rounding, and an integer shrinks with each update.
    """
    if model.avg_fn is not None:
        model.avg_fn = _keep_constants(model.avg_fn)


def copy_into_averages(module: nn.Module, callbacks: Iterable[Any]) -> None:
    """Update the copies of a module in callbacks that average its weights.

    They were copied before the first step, and are used until there is an average.
    """
    for callback in callbacks:
        average = getattr(callback, "_average_model", None)  # of WeightAveraging and of SWA
        averaged_module = average.module if isinstance(average, AveragedModel) else average
        if isinstance(averaged_module, nn.Module):
            averaged_module.load_state_dict(module.state_dict())


_Average = Callable[[Tensor, Tensor, Any], Tensor]


def _keep_constants(average: _Average) -> _Average:
    def average_or_constant(averaged: Tensor, current: Tensor, count: Any) -> Tensor:
        return torch.where(averaged == current, averaged, average(averaged, current, count))

    return average_or_constant

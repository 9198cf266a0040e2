"""Metrics of an epoch that a user's `self.log` accumulates, over an interruption of the epoch.

Lightning keeps their sums only in memory. So after a resume within an epoch, a metric that is
logged with `on_epoch=True` would be that of the remaining batches.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.trainer.connectors.logger_connector.result import (
    _ResultCollection,
    _ResultMetric,
)
from torch import Tensor
from torchmetrics import Metric
from typing_extensions import override

Sums = dict[str, dict[str, Any]]
"""For each metric: its name, and its sum and number of samples, or the state of its object."""


def epoch_sums(trainer: Any) -> list[Sums]:
    """The accumulated metrics of this epoch's training steps, by process; a collective call."""
    results: dict[str, Any] = trainer.fit_loop.epoch_loop._results
    sums = {
        key: _sum_of(metric) if metric.is_tensor else _state_of(metric)
        for key, metric in results.items()
        if metric.meta.on_epoch and not metric.has_reset
    }
    if trainer.world_size == 1:
        return [sums]
    by_rank: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(by_rank, sums)
    return by_rank


def _name_of(metric: Any) -> str:
    """The name of a metric's value for the epoch; Lightning adds "_epoch" beside one for steps."""
    return str(metric.meta.name) + ("_epoch" if metric.meta.on_step else "")


def _sum_of(metric: Any) -> dict[str, Any]:
    return {
        "name": _name_of(metric),
        "value": float(metric.value),
        "count": int(metric.cumulated_batch_size) if metric.meta.is_mean_reduction else None,
    }


def _state_of(metric: Any) -> dict[str, Any]:
    """The state of a metric object; states that are lists are left out."""
    own: Metric = metric.value
    states = {name: getattr(own, name) for name in own._defaults}
    return {
        "name": _name_of(metric),
        "attribute": metric.meta.metric_attribute,
        "states": {name: each.cpu() for name, each in states.items() if isinstance(each, Tensor)},
        "updates": own._update_count,
    }


def resume_epoch_sums(trainer: Any, by_rank: Sequence[Sums]) -> None:
    """Let the metrics of the current epoch continue from a checkpoint of as many processes."""
    if len(by_rank) != trainer.world_size:
        return
    sums = by_rank[trainer.global_rank]
    results = trainer.fit_loop.epoch_loop._results
    results.__class__ = _ResumedResults
    results.sums = dict(sums)
    for each in sums.values():
        if metric := _metric_object(trainer, each):
            for name in each["states"].keys() & metric._defaults.keys():
                setattr(metric, name, each["states"][name].to(metric.device))
            metric._update_count = each["updates"]


def _metric_object(trainer: Any, saved: Mapping[str, Any]) -> Metric | None:
    """The module's metric object of this saved state; None for a sum."""
    modules = dict(trainer.lightning_module.named_modules())
    metric = modules.get(saved.get("attribute", ""))
    return metric if isinstance(metric, Metric) else None


def log_remaining(trainer: Any) -> None:
    """Log the metrics that no batch has logged since the resume, such as after the last batch."""
    results = trainer.fit_loop.epoch_loop._results
    sums: Sums = vars(results).pop("sums", {})
    for each in sums.values():
        value = _metric_object(trainer, each) if "states" in each else _value(each)
        if value is not None:
            trainer.lightning_module.log(each["name"], value)


def _value(sums: Mapping[str, Any]) -> float:
    """The value of a metric from its sums.

    >>> _value({"value": 3.0, "count": 2}), _value({"value": 3.0, "count": None})
    (1.5, 3.0)
    """
    count = sums["count"]
    if count is None:
        return float(sums["value"])
    return float(torch.tensor(sums["value"]) / count) if count else float("nan")


class _ResumedResults(_ResultCollection):
    """Lightning's collection, in which new metrics start from the sums of a checkpoint."""

    sums: Sums

    @override
    def __setitem__(self, key: str, metric: _ResultMetric) -> None:
        super().__setitem__(key, metric)
        saved = vars(self).get("sums", {}).pop(key, None)
        if saved is None or not metric.is_tensor:
            return
        metric.value = torch.full_like(metric.value, saved["value"])
        if saved["count"] is not None and metric.meta.is_mean_reduction:
            metric.cumulated_batch_size = torch.tensor(saved["count"])

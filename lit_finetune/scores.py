"""What a classifier tells the loggers of a batch."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed
from torchmetrics import MetricCollection


@torch.compiler.disable  # type: ignore[untyped-decorator]  # by torch
def log_training(module: Any, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
    """Log a training batch: its loss at each step, the epoch's loss and accuracy.

    Args:
        module: The `LightningModule`; its `train_loss` and `train_acc` measure.
        loss: What is minimised.
        logits: (N, classes).
        labels: (N).
    """
    module.train_loss.update(loss, len(labels))
    module.train_acc.update(logits, labels)
    epoch: dict[str, Any] = {"on_step": False, "on_epoch": True, "batch_size": len(labels)}
    module.log("train/loss_step", loss, prog_bar=True, on_step=True, on_epoch=False)
    module.log("train/loss", module.train_loss, **epoch)
    module.log("train/acc", module.train_acc, **epoch)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # by torch
def log_evaluation(
    module: Any, stage: str, metrics: MetricCollection, logits: Tensor, labels: Tensor
) -> None:
    """Log a batch of validation or testing; each picture counts the same in the end.

    Args:
        module: The `LightningModule`; its `loss` is logged.
        stage: `val` or `test`, what the names begin with.
        metrics: What else is measured.
        logits: (N, classes).
        labels: (N).
    """
    metrics.update(logits, labels)
    loss = module.loss(logits, labels)
    module.log(f"{stage}/loss", loss, prog_bar=True, sync_dist=True, batch_size=len(labels))
    for name, metric in metrics.items():
        module.log(name, metric, prog_bar=name == f"{stage}/acc", batch_size=len(labels))


def measured(module: Any) -> list[Any]:
    """What each process has measured of the epoch's training, as plain data for a checkpoint."""
    own = [
        {name: state.tolist() for name, state in metric.metric_state.items()}
        for metric in (module.train_loss, module.train_acc)
    ]
    if module.trainer.world_size == 1:
        return [own]
    everyones: list[Any] = [None] * module.trainer.world_size
    distributed.all_gather_object(everyones, own)
    return everyones


def go_on_measuring(module: Any, saved: Sequence[Any]) -> None:
    """Go on from what `measured` gave, unless there is another number of processes now."""
    if len(saved) != module.trainer.world_size:
        return
    metrics = (module.train_loss, module.train_acc)
    for metric, states in zip(metrics, saved[module.global_rank], strict=True):
        for name, value in states.items():
            fresh = getattr(metric, name)
            setattr(metric, name, torch.as_tensor(value, dtype=fresh.dtype, device=fresh.device))

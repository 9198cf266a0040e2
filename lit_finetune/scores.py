"""What a classifier tells the loggers of a batch."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import MetricCollection


@torch.compiler.disable  # type: ignore[untyped-decorator]  # by torch
def log_training(module: Any, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
    """Log a training batch: its loss at each step, the epoch's loss and accuracy.

    Args:
        module: The `LightningModule`; its `train_acc` measures.
        loss: What is minimised.
        logits: (N, classes).
        labels: (N).
    """
    module.train_acc(logits, labels)
    epoch: dict[str, Any] = {"on_step": False, "on_epoch": True, "batch_size": len(labels)}
    module.log("train/loss_step", loss, prog_bar=True, on_step=True, on_epoch=False)
    module.log("train/loss", loss, sync_dist=True, **epoch)
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

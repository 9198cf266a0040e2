"""What a classifier tells the loggers and the progress bar, without making the device wait."""

import time
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MetricCollection

SHOW_EVERY_S = 0.25
"""How often the progress bar is given a new loss: to read it, the program waits for the device."""


class TrainingScores:
    """Loss and accuracy of a training epoch, summed on the device until the epoch ends.

    What Lightning's own `log` adds up at every step takes longer than a small network's step, and a
    value for the progress bar is read from the device each time.
    """

    def __init__(self) -> None:
        self.sums: Tensor | None = None
        """Of losses, of right answers and of pictures, since the epoch began; float64."""
        self._shown_at = 0.0

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # by torch
    @torch.no_grad()
    def add(self, module: Any, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Count a batch, log its loss where it is the loggers' turn, and show it now and then.

        Args:
            module: The `LightningModule`.
            loss: What is minimised; the mean of the batch.
            logits: (N, classes).
            labels: (N).
        """
        count = len(labels)
        right = (logits.argmax(dim=-1) == labels).sum()
        new = torch.stack([loss.detach() * count, right, right.new_tensor(count)])
        new = new.to(torch.float32 if new.device.type == "mps" else torch.float64)  # mps has none
        self.sums = new if self.sums is None else self.sums.to(new) + new
        trainer = module.trainer
        if trainer.log_every_n_steps and (trainer.global_step + 1) % trainer.log_every_n_steps == 0:
            module.log("train/loss_step", loss, on_step=True, on_epoch=False, batch_size=count)
        if trainer.progress_bar_callback and time.monotonic() > self._shown_at + SHOW_EVERY_S:
            trainer.progress_bar_metrics["train/loss_step"] = float(loss)
            self._shown_at = time.monotonic()

    def mean_of_processes(self, strategy: Any) -> Tensor | None:
        """What each process goes on with when an interrupted epoch is resumed.

        Args:
            strategy: The Trainer's; None where a checkpoint is saved without a run.
        """
        if self.sums is None or strategy is None:
            return None
        return strategy.reduce(self.sums.clone(), reduce_op="mean")

    def finish(self, module: Any) -> None:
        """Log the epoch's loss and accuracy over the pictures of all processes, and start anew."""
        if self.sums is None:  # nothing was trained, as in the last epoch of weight averaging
            return
        loss, right, count = module.trainer.strategy.reduce(self.sums, reduce_op="sum")
        module.log("train/loss", (loss / count).float())
        module.log("train/acc", (right / count).float())
        self.sums = None


@torch.compiler.disable  # type: ignore[untyped-decorator]  # by torch
def log_evaluation(
    module: Any, stage: str, metrics: MetricCollection, logits: Tensor, labels: Tensor
) -> None:
    """Log a batch of validation or testing; each picture counts the same in the end.

    Lightning's own mean, with `sync_dist`, is wrong where processes have unequal numbers of them.

    Args:
        module: The `LightningModule`; its `loss` is logged, by its `val_loss` or `test_loss`.
        stage: `val` or `test`, what the names begin with.
        metrics: What else is measured.
        logits: (N, classes).
        labels: (N).
    """
    metrics.update(logits, labels)
    mean = getattr(module, f"{stage}_loss")
    mean.update(module.loss(logits, labels), len(labels))
    module.log(f"{stage}/loss", mean, prog_bar=True, batch_size=len(labels))
    for name, metric in metrics.items():
        module.log(name, metric, prog_bar=name == f"{stage}/acc", batch_size=len(labels))

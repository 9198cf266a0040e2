"""Loss and accuracy of training for loggers and progress bar, without waiting for the device."""

import time
from typing import Any

import torch
from torch import Tensor

from lit_finetune.training.eval_metrics import weighted_loss

SHOW_EVERY_S = 0.25
"""The interval of updates of the progress bar: reading the loss waits for the device."""


class TrainingMetrics:
    """Loss and accuracy of a training epoch, summed on the device until the epoch ends.

    Lightning's `log` takes longer than a small network's step, and reads a value for the progress
    bar from the device at each step.
    """

    def __init__(self) -> None:
        self.sums: Tensor | None = None
        """The sums of the epoch so far, in float64: losses, correct predictions, images with one
        label, and weights of the losses."""
        self._last_shown = 0.0

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # by torch
    @torch.no_grad()
    def add(
        self,
        module: Any,
        loss: Tensor,
        logits: Tensor,
        labels: Tensor | None,
        *,
        weight: Tensor | int,
    ) -> None:
        """Count a batch, log its loss at every `log_every_n_steps`, and show it now and then.

        Args:
            module: The `LightningModule`.
            loss: The mean loss of the batch.
            logits: (N, classes).
            labels: (N), those out of range are not counted; None if an image does not have one.
            weight: The divisor of the mean loss.
        """
        count = len(logits)
        # mps has no float64
        dtype = torch.float32 if logits.device.type == "mps" else torch.float64
        right = torch.zeros((), dtype=dtype, device=logits.device)
        answers = right
        if labels is not None:
            right = (logits.argmax(dim=-1) == labels).sum().to(dtype)
            # A loss of the user's own may ignore labels out of range, such as -100.
            answers = ((labels >= 0) & (labels < logits.shape[-1])).sum().to(dtype)
        weights = weight.to(right) if isinstance(weight, Tensor) else right.new_full((), weight)
        batch_sums = torch.stack(
            [weighted_loss(loss.detach().to(right), weights), right, answers, weights]
        )
        self.sums = (
            batch_sums
            if self.sums is None
            else _with_weights(self.sums.to(batch_sums)) + batch_sums
        )
        trainer = module.trainer
        if trainer.log_every_n_steps and (trainer.global_step + 1) % trainer.log_every_n_steps == 0:
            module.log("train/loss_step", loss, on_step=True, on_epoch=False, batch_size=count)
        if trainer.progress_bar_callback and time.monotonic() > self._last_shown + SHOW_EVERY_S:
            trainer.progress_bar_metrics["train/loss_step"] = float(loss)
            self._last_shown = time.monotonic()

    def mean_of_processes(self, strategy: Any) -> Tensor | None:
        """The sums with which each process resumes an interrupted epoch.

        Args:
            strategy: The Trainer's strategy; None if a checkpoint is saved without a run.
        """
        if self.sums is None or strategy is None:
            return None
        return strategy.reduce(self.sums.clone(), reduce_op="mean")

    def finish(self, module: Any) -> None:
        """Log the epoch's loss and accuracy over the images of all processes, and reset."""
        if self.sums is None:  # nothing was trained, as in the last epoch of weight averaging
            return
        sums = module.trainer.strategy.reduce(_with_weights(self.sums), reduce_op="sum")
        loss, right, answers, weights = sums
        # All processes have the same value; the maximum keeps it bit for bit.
        options: dict[str, Any] = {"sync_dist": True, "reduce_fx": "max"}
        module.log("train/loss", (loss / weights).float(), **options)
        if answers > 0:
            module.log("train/acc", (right / answers).float(), **options)
        self.sums = None


def _with_weights(sums: Tensor) -> Tensor:
    """The sums of a checkpoint: older ones have no weights, since each image counted as 1."""
    return torch.cat([sums, sums[2:]]) if len(sums) == 3 else sums

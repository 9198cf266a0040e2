"""What a training tells the loggers and the progress bar, without making the device wait."""

import time
from typing import Any

import torch
from torch import Tensor

SHOW_EVERY_S = 0.25
"""How often the progress bar is given a new loss: to read it, the program waits for the device."""


class TrainingScores:
    """Loss and accuracy of a training epoch, summed on the device until the epoch ends.

    What Lightning's own `log` adds up at every step takes longer than a small network's step, and a
    value for the progress bar is read from the device each time.
    """

    def __init__(self) -> None:
        self.sums: Tensor | None = None
        """Since the epoch began, in float64: of losses, of right answers, of pictures that have one
        right answer, and of what the losses count in their mean."""
        self._shown_at = 0.0

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
        """Count a batch, log its loss where it is the loggers' turn, and show it now and then.

        Args:
            module: The `LightningModule`.
            loss: What is minimised; the mean of the batch.
            logits: (N, classes).
            labels: (N); None where a picture has not one right answer.
            weight: What the sum of the losses was divided by to be the mean.
        """
        count = len(logits)
        # mps knows no float64
        dtype = torch.float32 if logits.device.type == "mps" else torch.float64
        right = torch.zeros((), dtype=dtype, device=logits.device)
        if labels is not None:
            right = (logits.argmax(dim=-1) == labels).sum().to(dtype)
        answers = right.new_full((), 0 if labels is None else count)
        weights = weight.to(right) if isinstance(weight, Tensor) else right.new_full((), weight)
        new = torch.stack([loss.detach().to(right) * weights, right, answers, weights])
        self.sums = new if self.sums is None else _of_four(self.sums.to(new)) + new
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
        sums = module.trainer.strategy.reduce(_of_four(self.sums), reduce_op="sum")
        loss, right, answers, weights = sums
        # All processes have the same number: so it stays, to the bit.
        options: dict[str, Any] = {"sync_dist": True, "reduce_fx": "max"}
        module.log("train/loss", (loss / weights).float(), **options)
        if answers > 0:
            module.log("train/acc", (right / answers).float(), **options)
        self.sums = None


def _of_four(sums: Tensor) -> Tensor:
    """Sums that a checkpoint holds: older ones have no fourth, for each picture counted as one."""
    return torch.cat([sums, sums[2:]]) if len(sums) == 3 else sums

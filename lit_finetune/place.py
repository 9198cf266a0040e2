"""Where a run stands, and what Lightning forgets of it when it resumes."""

from collections.abc import Mapping
from typing import Any, NamedTuple

MONITORED = "lit_finetune_monitored"
"""Where a checkpoint holds the metrics that plateau schedulers wait for."""


class Place(NamedTuple):
    """The epoch that trains next, and how many of its batches are done."""

    epoch: int
    batches: int


def place_in_run(loop: Any) -> Place:
    """Where a Trainer's `fit_loop` stands when its training is about to begin or to go on.

    On resume Lightning has not yet settled on the epoch at that time: a checkpoint of an epoch's
    end may or may not count that epoch as processed.
    """
    epochs, batches = loop.epoch_progress.current, loop.epoch_loop.batch_progress
    if batches.is_last_batch:
        return Place(max(epochs.processed, epochs.started), 0)
    return Place(epochs.processed, batches.current.ready)


def monitored(trainer: Any) -> dict[str, float]:
    """The metrics that plateau schedulers wait for, as they are now; none without a Trainer."""
    if trainer is None:  # `trainer.strategy.connect(model); trainer.save_checkpoint(file)`
        return {}
    names = [config.monitor for config in _plateaus(trainer)]
    metrics = trainer.callback_metrics
    return {name: float(metrics[name]) for name in names if name in metrics}


def catch_up(trainer: Any, epochs: int, saved: Mapping[str, float]) -> None:
    """Give each plateau scheduler the step that a resume would cost it.

    Checkpoints are written before the schedulers see the epoch's metric, and Lightning leaves that
    step out of the epoch in which a run resumes.

    Args:
        trainer: It has its schedulers.
        epochs: How many epochs are over.
        saved: The metrics when the checkpoint was written, for those that are not known anew.
    """
    metrics = {**saved, **monitored(trainer)}
    for config in _plateaus(trainer):
        is_behind = config.scheduler.last_epoch < epochs // config.frequency
        if is_behind and config.monitor in metrics:
            config.scheduler.step(metrics[config.monitor])


def _plateaus(trainer: Any) -> list[Any]:
    configs = trainer.lr_scheduler_configs
    return [c for c in configs if c.reduce_on_plateau and c.interval == "epoch"]

"""Where a run stands."""

from typing import Any, NamedTuple


class RunPosition(NamedTuple):
    """The epoch that trains next, and how many of its batches are done."""

    epoch: int
    batches: int


def position_in_run(loop: Any) -> RunPosition:
    """Where a Trainer's `fit_loop` stands when its training is about to begin or to go on.

    On resume Lightning has not yet settled on the epoch at that time: a checkpoint of an epoch's
    end may or may not count that epoch as processed.
    """
    epochs, batches = loop.epoch_progress.current, loop.epoch_loop.batch_progress
    if batches.is_last_batch:
        return RunPosition(max(epochs.processed, epochs.started), 0)
    return RunPosition(epochs.processed, batches.current.ready)

"""The position of a run."""

from typing import Any, NamedTuple


class RunPosition(NamedTuple):
    """The next epoch to train, and the number of its batches that are done."""

    epoch: int
    batches: int


def position_in_run(loop: Any) -> RunPosition:
    """The position of a Trainer's `fit_loop` when training is about to start or resume.

    On resume, Lightning has not determined the epoch yet: a checkpoint of an epoch's end may or may
    not count that epoch as processed.
    """
    epochs, batches = loop.epoch_progress.current, loop.epoch_loop.batch_progress
    if batches.is_last_batch:
        return RunPosition(max(epochs.processed, epochs.started), 0)
    return RunPosition(epochs.processed, batches.current.ready)

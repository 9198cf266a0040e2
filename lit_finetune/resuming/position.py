"""Determine the position of a checkpoint in its run, and set Lightning's loops to it.

Lightning infers from its counters what a resumed run still has to do. Depending on the hook that
wrote the file, it skips a validation that is due, the end of an epoch or the start of the next one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ON_LAST, MID_EVALUATION = "restarted_on_last", "restarted_mid_evaluation"
"""Lightning's names for two of the stages at which a run resumes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumePoint:
    """The position in a run at which a checkpoint was written."""

    epoch: int
    """The current epoch, or the next one at an epoch's end."""
    batches: int = 0
    """The number of its batches that were done; 0 at the start of an epoch."""
    is_last_batch: bool = False
    """Whether all its batches were done."""
    is_validated: bool = False
    """Whether the validation after these batches was done."""
    is_complete: bool = True
    """Whether schedulers and loggers had processed the last batch or epoch."""


def read_point(loops: Mapping[str, Any], *, is_complete: bool = False) -> ResumePoint:
    """The position at which a checkpoint was written.

    Args:
        loops: The state of Lightning's `fit_loop` in the checkpoint.
        is_complete: Whether the last batch or epoch is known to be fully processed.
    """
    epochs, progress = loops["epoch_progress"]["current"], loops["epoch_loop.batch_progress"]
    batches = progress["current"]
    if epochs["started"] <= epochs["processed"]:  # at an epoch's end, or before the next start
        is_completed = epochs["completed"] == epochs["processed"]
        return ResumePoint(epoch=epochs["processed"], is_complete=is_complete or is_completed)
    is_next_ready = batches["ready"] > batches["processed"]  # the next batch was fetched already
    return ResumePoint(
        epoch=epochs["processed"],
        batches=batches["processed"],
        is_last_batch=progress["is_last_batch"] and not is_next_ready,
        is_validated=batches["completed"] == batches["processed"]
        and (
            is_next_ready
            or is_complete
            or _is_completed(loops["epoch_loop.val_loop.batch_progress"])
        ),
        is_complete=is_complete or is_next_ready or batches["processed"] == 0,
    )


def normalize_counters(loops: dict[str, Any], point: ResumePoint) -> None:
    """Set the counters in a checkpoint to completed batches and epochs."""
    epochs, progress = loops["epoch_progress"], loops["epoch_loop.batch_progress"]
    _set_counts(epochs["current"], point.epoch, has_next_started=point.batches > 0)
    _set_counts(epochs["total"], epochs["total"]["processed"], has_next_started=point.batches > 0)
    _set_counts(progress["current"], point.batches)
    _set_counts(progress["total"], progress["total"]["processed"])
    progress["is_last_batch"] = point.is_last_batch


def set_loops(trainer: Any, point: ResumePoint) -> None:
    """Set a Trainer's loops, which have loaded normalised counters, to resume from a position.

    Args:
        trainer: Its training is about to start.
        point: The position of the checkpoint.
    """
    loop = trainer.fit_loop
    epoch_loop, val_loop = loop.epoch_loop, loop.epoch_loop.val_loop
    loop._restarting = False  # else plateau schedulers miss the end of this epoch
    val_loop.restarting = False
    for each in (epoch_loop, val_loop):
        each.reset_restart_stage()
    _restart_fetcher(loop, is_new_epoch=point.batches == 0)
    if point.batches == 0:
        epoch_loop.restarting = False
        return
    epoch_loop._restarting = True
    is_due = not point.is_validated and epoch_loop._should_check_val_fx(loop._data_fetcher)
    if is_due and not point.is_complete:
        _validate_first(epoch_loop)
        return
    if point.is_complete and not epoch_loop._should_accumulate():
        epoch_loop._batches_that_stepped -= 1  # it will be counted again
    if epoch_loop._is_training_done:
        val_loop._has_run = True  # only the end of the epoch is left


def finish_epoch(trainer: Any) -> None:
    """Reset the loops after the epoch in which a run resumed."""
    epoch_loop = trainer.fit_loop.epoch_loop
    if epoch_loop.restarting:  # none of its batches was left
        epoch_loop.restarting = epoch_loop.val_loop._has_run = False


def _restart_fetcher(loop: Any, *, is_new_epoch: bool) -> None:
    """Restart the loaders at the position of the run.

    Lightning may have fetched batches before it read the checkpoint: computing the number of steps,
    as for a scheduler, starts the workers. It does not restore the loaders' states of an epoch's
    end.
    """
    states, loader = loop._combined_loader_states_to_load, loop._combined_loader
    if states:
        loader._load_state_dicts(states)
        loop._combined_loader_states_to_load = []
        if is_new_epoch:
            iter(loop._data_fetcher)  # the rest of the previous epoch, which is empty
    elif any(hasattr(each, "load_state_dict") for each in loader.flattened):
        return  # they have loaded their states, and start there
    iter(loop._data_fetcher)


def _validate_first(epoch_loop: Any) -> None:
    """Let the loop run the validation that was due, from its first batch."""
    epoch_loop._restart_stage = ON_LAST
    epoch_loop.val_loop.batch_progress.reset()
    epoch_loop.val_loop._restart_stage = MID_EVALUATION


def _is_completed(progress: Mapping[str, Any]) -> bool:
    """Whether a validation was completed."""
    counts = progress["current"]
    return bool(progress["is_last_batch"] and counts["ready"] == counts["completed"] > 0)


def _set_counts(counts: dict[str, int], done: int, *, has_next_started: bool = False) -> None:
    """Set counters to a number done, and one more started or not."""
    counts.update(
        ready=done + has_next_started,
        started=done + has_next_started,
        processed=done,
        completed=done,
    )

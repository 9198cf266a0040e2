"""Where in a run a checkpoint was written, and Lightning's loops set to go on from just there.

Lightning guesses from its counters what a resumed run has left to do. It skips a validation that is
due, the end of an epoch or the start of the next one, depending on the hook that wrote the file.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ON_LAST, MID_EVALUATION = "restarted_on_last", "restarted_mid_evaluation"
"""Lightning's names for two of the stages at which a run goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumePoint:
    """What a run had done when a checkpoint was written."""

    epoch: int
    """The epoch that was training, or that would have begun next."""
    batches: int = 0
    """How many of its batches were done; 0 where the epoch begins."""
    is_last_batch: bool = False
    """Whether these were all of them."""
    is_validated: bool = False
    """Whether the validation after these batches was over."""
    is_settled: bool = True
    """Whether schedulers and loggers had been told of the last batch, or epoch."""


def read_point(loops: Mapping[str, Any], *, is_settled: bool = False) -> ResumePoint:
    """Where a checkpoint was written.

    Args:
        loops: The state of Lightning's `fit_loop` in the checkpoint.
        is_settled: Whether it is known that nothing was left to do for the last batch or epoch.
    """
    epochs, progress = loops["epoch_progress"]["current"], loops["epoch_loop.batch_progress"]
    batches = progress["current"]
    if epochs["started"] <= epochs["processed"]:  # at an epoch's end, or before a start
        is_over = epochs["completed"] == epochs["processed"]
        return ResumePoint(epoch=epochs["processed"], is_settled=is_settled or is_over)
    is_between = batches["ready"] > batches["processed"]  # the next batch has come already
    return ResumePoint(
        epoch=epochs["processed"],
        batches=batches["processed"],
        is_last_batch=progress["is_last_batch"] and not is_between,
        is_validated=batches["completed"] == batches["processed"]
        and (is_between or is_settled or _is_over(loops["epoch_loop.val_loop.batch_progress"])),
        is_settled=is_settled or is_between or batches["processed"] == 0,
    )


def tidy(loops: dict[str, Any], point: ResumePoint) -> None:
    """Let the counters in a checkpoint say what is done, and nothing half done."""
    epochs, progress = loops["epoch_progress"], loops["epoch_loop.batch_progress"]
    _set_counts(epochs["current"], point.epoch, is_begun=point.batches > 0)
    _set_counts(epochs["total"], epochs["total"]["processed"], is_begun=point.batches > 0)
    _set_counts(progress["current"], point.batches)
    _set_counts(progress["total"], progress["total"]["processed"])
    progress["is_last_batch"] = point.is_last_batch


def set_loops(trainer: Any, point: ResumePoint) -> None:
    """Set a Trainer's loops, which have read a tidy state, to go on from a point.

    Args:
        trainer: Its training is about to begin.
        point: Where the checkpoint was written.
    """
    loop = trainer.fit_loop
    epoch_loop, val_loop = loop.epoch_loop, loop.epoch_loop.val_loop
    loop._restarting = False  # else plateau schedulers miss the end of this epoch
    val_loop.restarting = False
    for each in (epoch_loop, val_loop):
        each.reset_restart_stage()
    _fetch_from_here(loop, is_new_epoch=point.batches == 0)
    if point.batches == 0:
        epoch_loop.restarting = False
        return
    epoch_loop._restarting = True
    is_due = not point.is_validated and epoch_loop._should_check_val_fx(loop._data_fetcher)
    if is_due and not point.is_settled:
        _validate_first(epoch_loop)
        return
    if point.is_settled and not epoch_loop._should_accumulate():
        epoch_loop._batches_that_stepped -= 1  # it is about to be counted once more
    if epoch_loop._is_training_done:
        val_loop._has_run = True  # nothing but the end of the epoch is left


def finish_epoch(trainer: Any) -> None:
    """Let all after the epoch in which a run went on be as in any other run."""
    epoch_loop = trainer.fit_loop.epoch_loop
    if epoch_loop.restarting:  # none of its batches was left
        epoch_loop.restarting = epoch_loop.val_loop._has_run = False


def _fetch_from_here(loop: Any, *, is_new_epoch: bool) -> None:
    """Let the loaders begin where the run goes on.

    Lightning may have asked them for batches before it read the checkpoint: whoever asks for the
    number of steps, as a scheduler does, makes it do so, and workers do not wait. What loaders had
    to say at an epoch's end it does not give back to them.
    """
    states, loader = loop._combined_loader_states_to_load, loop._combined_loader
    if states:
        loader._load_state_dicts(states)
        loop._combined_loader_states_to_load = []
        if is_new_epoch:
            iter(loop._data_fetcher)  # the rest of the epoch before, of which nothing is left
    elif any(hasattr(each, "load_state_dict") for each in loader.flattened):
        return  # they have been told, and begin there once
    iter(loop._data_fetcher)


def _validate_first(epoch_loop: Any) -> None:
    """Let the loop take up the validation that was due, from its first batch."""
    epoch_loop._restart_stage = ON_LAST
    epoch_loop.val_loop.batch_progress.reset()
    epoch_loop.val_loop._restart_stage = MID_EVALUATION


def _is_over(progress: Mapping[str, Any]) -> bool:
    """Whether a validation has come to its end."""
    counts = progress["current"]
    return bool(progress["is_last_batch"] and counts["ready"] == counts["completed"] > 0)


def _set_counts(counts: dict[str, int], done: int, *, is_begun: bool = False) -> None:
    """So many are done; and one more has begun, or none has."""
    counts.update(ready=done + is_begun, started=done + is_begun, processed=done, completed=done)

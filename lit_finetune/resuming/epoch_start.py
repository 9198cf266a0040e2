"""Repeat the epoch start of Lightning's callbacks when a run resumes within an epoch.

Lightning skips `on_train_epoch_start` then. Most of its callbacks save what they set in that hook
in their state; those here do not.
"""

from functools import partial
from typing import Any


def repeat_epoch_start(trainer: Any) -> None:
    """Restore the state of gradient accumulation and weight averaging within an epoch.

    Args:
        trainer: It has read a checkpoint, and is about to train the rest of an epoch.

    Raises:
        ValueError: The checkpoint was written while statistics were updated, which are lost.
    """
    for callback in trainer.callbacks:
        if hasattr(callback, "get_accumulate_grad_batches"):  # GradientAccumulationScheduler
            callback.on_train_epoch_start(trainer)
            # It would take the value that it has set itself for the user's.
            vars(callback)["on_train_start"] = partial(_skip_once, callback)
        elif hasattr(callback, "_swa_scheduler"):  # StochasticWeightAveraging
            _resume_averaging(callback, trainer)


def _skip_once(callback: Any, *_: Any) -> None:
    vars(callback).pop("on_train_start", None)


def _resume_averaging(callback: Any, trainer: Any) -> None:
    """Restore the scheduler of weight averaging, without the initial step of a new one.

    Raises:
        ValueError: Averaging was over, and statistics were being updated.
    """
    if trainer.current_epoch == callback.swa_end + 1:
        raise ValueError(
            "The checkpoint was written within the last epoch of StochasticWeightAveraging, which"
            " gathers statistics and does not train: those of the batches before are not in it."
            " Resume from a checkpoint of an epoch's end."
        )
    if callback._scheduler_state is None:  # averaging had not started
        return
    groups = trainer.optimizers[0].param_groups
    rates = [group["lr"] for group in groups]
    callback.on_train_epoch_start(trainer, trainer.lightning_module)
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = rate

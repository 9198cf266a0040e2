"""What Lightning's callbacks do at an epoch's start, done again where a run goes on amid one.

Lightning skips `on_train_epoch_start` there. Its callbacks that keep what they set in that hook in
their state need no help; these do.
"""

from functools import partial
from typing import Any


def repeat_epoch_start(trainer: Any) -> None:
    """Let accumulation and weight averaging be as they were amid the epoch that goes on.

    Args:
        trainer: It has read a checkpoint, and is about to train the rest of an epoch.

    Raises:
        ValueError: Of what the checkpoint was written amid, a part is lost.
    """
    for callback in trainer.callbacks:
        if hasattr(callback, "get_accumulate_grad_batches"):  # GradientAccumulationScheduler
            callback.on_train_epoch_start(trainer)
            # It takes what it has set itself for the user's.
            vars(callback)["on_train_start"] = partial(_skip_once, callback)
        elif hasattr(callback, "_swa_scheduler"):  # StochasticWeightAveraging
            _resume_averaging(callback, trainer)


def _skip_once(callback: Any, *_: Any) -> None:
    vars(callback).pop("on_train_start", None)


def _resume_averaging(callback: Any, trainer: Any) -> None:
    """Put the scheduler back that averages weights, without the step that a new one makes.

    Raises:
        ValueError: No scheduler is left, and statistics were being gathered.
    """
    if trainer.current_epoch == callback.swa_end + 1:
        raise ValueError(
            "The checkpoint was written amid the last epoch of StochasticWeightAveraging, which"
            " gathers statistics and does not train: those of the batches before are not in it."
            " Resume from a checkpoint of an epoch's end."
        )
    if callback._scheduler_state is None:  # averaging had not begun
        return
    groups = trainer.optimizers[0].param_groups
    rates = [group["lr"] for group in groups]
    callback.on_train_epoch_start(trainer, trainer.lightning_module)
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = rate

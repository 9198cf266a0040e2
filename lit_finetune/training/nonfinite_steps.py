"""Stop a training at a loss that is not finite, or skip the optimizer's step."""

import warnings
from typing import Any

from lightning.pytorch.tuner.lr_finder import _LRCallback

from lit_finetune.training.nonfinite import describe_loss, discard_gradients


def stop_or_skip_nonfinite(classifier: Any, *, is_before_step: bool = True) -> None:
    """Raise for a nonfinite loss since the last call, or discard its gradients.

    Args:
        classifier: A `ClassifierSteps`, whose `stops_if_nonfinite` decides.
        is_before_step: Whether no optimizer has stepped since.

    Raises:
        ValueError: Says where the loss was, and its likely cause.
    """
    if not (nonfinite := classifier.loss_watch.pop_nonfinite()):
        return
    trainer = classifier.trainer
    if any(isinstance(each, _LRCallback) for each in trainer.callbacks):
        return  # Lightning's LR range test raises the rate until this happens, and restores all
    rates = [group["lr"] for each in trainer.optimizers for group in each.param_groups]
    precision, lr = str(trainer.precision), float(max(rates, default=0.0))
    text = describe_loss(nonfinite[0], classifier, precision=precision, lr=lr)
    if classifier.stops_if_nonfinite:
        raise ValueError(f"{text} {stop_advice(is_before_step=is_before_step)}")
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    discard_gradients(classifier, has_scaler=scaler is not None)
    classifier.loss_watch.restore_statistics()
    if not classifier.loss_watch.is_reported(classifier.current_epoch):
        warnings.warn(f"{text} {skip_notice(is_before_step=is_before_step)}", stacklevel=2)


def stop_advice(*, is_before_step: bool) -> str:
    """What a stop has prevented, and what to do.

    >>> stop_advice(is_before_step=False)[:60]
    'The module may have made this step itself: resume from an ea'
    """
    if not is_before_step:
        return (
            "The module may have made this step itself: resume from an earlier checkpoint, and step"
            " the optimizers of `self.optimizers()`, before whose steps the loss is checked."
        )
    return (
        "This step was not made: earlier checkpoints have no such number. To skip such steps and"
        " continue, set `error_if_nonfinite` to false."
    )


def skip_notice(*, is_before_step: bool) -> str:
    """What is skipped.

    >>> skip_notice(is_before_step=True)
    'This step is left out, and others like it.'
    """
    if is_before_step:
        return "This step is left out, and others like it."
    return "Its gradient is left out, unless the module has made its step already; so are others."

"""What other callbacks of a run do that concerns what is frozen."""

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder, WeightAveraging
from torch.optim.lr_scheduler import LRScheduler

from lit_finetune.averaging import average_exactly

from .linear_probe import LinearProbe


def schedulers_of(trainer: Trainer) -> list[LRScheduler]:
    """The learning rate schedulers of now: StochasticWeightAveraging changes them amid a run."""
    return [config.scheduler for config in trainer.lr_scheduler_configs]


def has_finder(trainer: Trainer) -> bool:
    """Whether the Tuner is at work: it trains on trial, and asks no other callback meanwhile."""
    return any(isinstance(c, LearningRateFinder | BatchSizeFinder) for c in _callbacks(trainer))


def has_probe(trainer: Trainer) -> bool:
    """Whether the head is fitted before the first epoch."""
    return any(isinstance(callback, LinearProbe) for callback in _callbacks(trainer))


def keep_averages_exact(trainer: Trainer) -> None:
    """Let moving averages of weights, such as EMAWeightAveraging's, leave frozen ones alone."""
    for callback in _callbacks(trainer):
        if isinstance(callback, WeightAveraging) and callback._average_model is not None:
            average_exactly(callback._average_model)


def _callbacks(trainer: Trainer) -> list[Callback]:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set elsewhere
    return callbacks

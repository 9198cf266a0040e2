"""Save the state of a run in a checkpoint, besides weights and optimizers, and resume from it.

The classifier and the callbacks of this package call these from their hooks of the same names. Only
the first call has an effect.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, tensor

from lit_finetune.loading.batching import batching_of, check_batching
from lit_finetune.loading.dataset_digest import check_dataset, dataset_digest
from lit_finetune.loading.loader_order import make_repeatable, order_of, resume_order, sampler_of
from lit_finetune.resuming.accumulated_gradients import accumulated_gradients, restore_gradients
from lit_finetune.resuming.epoch_metrics import (
    Sums,
    epoch_sums,
    log_remaining,
    resume_epoch_sums,
)
from lit_finetune.resuming.epoch_start import repeat_epoch_start
from lit_finetune.resuming.optimizer_settings import (
    changed_options,
    changed_options_line,
    refuse_other_classes,
    settings_of,
)
from lit_finetune.resuming.position import (
    ResumePoint,
    finish_epoch,
    normalize_counters,
    read_point,
    set_loops,
)

RUN = "lit_finetune_run"
"""The key of the run's state in a checkpoint."""
METRICS = "lit_finetune_monitored"
"""The key of the metrics for callbacks and plateau schedulers in a checkpoint."""
_STATE_KEY, _DATASET_KEY = "lit_finetune_resumed", "lit_finetune_pictures"
_SETTINGS_KEY = "lit_finetune_settings"


@dataclass(slots=True)
class RunState:
    """The state of a run that is resumed."""

    point: ResumePoint
    metrics: dict[str, float] = field(default_factory=dict)
    batching: dict[str, int] = field(default_factory=dict)
    order: dict[str, Any] | None = None
    pictures: object = None
    gradients: object = None
    epoch_metrics: list[Sums] = field(default_factory=list)
    is_restored: bool = False

    def drop_epoch_metrics(self, *names: str) -> None:
        """Drop metrics of the last epoch if the checkpoint was written before they were logged."""
        if not self.point.batches:
            for name in names:
                self.metrics.pop(name, None)


def save_run(trainer: Any, checkpoint: dict[str, Any]) -> None:
    """Add the state of the run that Lightning leaves out to a checkpoint.

    Args:
        trainer: None if a checkpoint is saved without a run.
        checkpoint: The checkpoint that will be saved.
    """
    checkpoint[METRICS] = scalars(trainer.callback_metrics) if trainer else {}
    run = checkpoint.setdefault(RUN, {})
    if trainer and trainer.state.fn == "fit":
        run["batching"] = batching_of(trainer)
        point = read_point(checkpoint["loops"]["fit_loop"])
        run["order"] = order_of(trainer, batches=point.batches)
        run["pictures"] = _training_digest(trainer)
        if settings := _recorded_settings(trainer):
            run["settings"] = settings
        if "gradients" not in run:  # the schedule's callback may have saved them
            run["gradients"] = accumulated_gradients(trainer, point)
        if point.batches and "epoch_metrics" not in run:
            run["epoch_metrics"] = epoch_sums(trainer)


def load_run(trainer: Any, checkpoint: dict[str, Any]) -> RunState | None:
    """The state of the run in a checkpoint, whose counters are normalised.

    Args:
        trainer: It resumes, evaluates or predicts; None if a module is loaded without one.
        checkpoint: The checkpoint, before Lightning loads the state of its loops from it.
    """
    if trainer is None or trainer.state.fn != "fit" or "loops" not in checkpoint:
        return None
    if not isinstance(checkpoint.get(_STATE_KEY), RunState):  # a file may have other data there
        loops, run = checkpoint["loops"]["fit_loop"], checkpoint.get(RUN, {})
        point = read_point(loops, is_complete=run.get("is_settled", False))
        normalize_counters(loops, point)
        checkpoint[_STATE_KEY] = RunState(
            point,
            dict(checkpoint.get(METRICS, {})),
            run.get("batching", {}),
            run.get("order"),
            run.get("pictures"),
            run.get("gradients"),
            run.get("epoch_metrics", []),
        )
    state: RunState = checkpoint[_STATE_KEY]
    return state


def compare_settings(trainer: Any, checkpoint: Mapping[str, Any]) -> None:
    """Compare this run's optimizers and schedulers with those of a checkpoint's run.

    Args:
        trainer: It has not loaded the states of its optimizers and schedulers yet.
        checkpoint: The checkpoint; an older one does not have these settings.

    Raises:
        ValueError: They are of other classes.
    """
    if (saved := checkpoint.get(RUN, {}).get("settings")) is None:
        return
    current = _settings(trainer)
    # StochasticWeightAveraging has a scheduler of its own, and has removed the run's by now.
    is_averaging = any(
        getattr(each, "_scheduler_state", None) is not None for each in trainer.callbacks
    )
    compared = {**saved, "schedulers": current["schedulers"]} if is_averaging else saved
    refuse_other_classes(compared, current)
    changes = changed_options(compared, current)
    if changes and trainer.global_rank == 0:
        warnings.warn(changed_options_line(changes), stacklevel=2)
    vars(trainer.fit_loop)[_SETTINGS_KEY] = trainer.optimizers, saved


def start_run(trainer: Any, state: RunState | None) -> None:
    """Resume a run, or make the sample order of a new one repeatable.

    Raises:
        ValueError: The run resumes within an epoch that is divided into other batches.
    """
    if _recorded_settings(trainer) is None:
        vars(trainer.fit_loop)[_SETTINGS_KEY] = trainer.optimizers, _settings(trainer)
    is_new = make_repeatable(trainer)
    pictures = _training_digest(trainer)
    if state is None and is_new:
        iter(trainer.fit_loop._data_fetcher)
    if state is None or state.is_restored:
        return
    state.is_restored = True
    if state.point.batches:
        repeat_epoch_start(trainer)
    check_batching(state.batching, batching_of(trainer), batches=state.point.batches)
    num_done = 0 if state.point.is_last_batch else state.point.batches
    check_dataset(state.pictures, pictures, batches=num_done)
    resume_order(trainer, state.order, batches=state.point.batches)
    restore_gradients(trainer, state.point, state.gradients)
    resume_epoch_sums(trainer, state.epoch_metrics)
    set_loops(trainer, state.point)
    _step_missed_schedulers(trainer, state)
    run = {name: tensor(value) for name, value in state.metrics.items()}
    trainer._logger_connector._callback_metrics.update(run)


def end_epoch(trainer: Any, state: RunState | None) -> None:
    """Reset the loops and the sampler after the first epoch of a resumed run."""
    if state is not None:
        log_remaining(trainer)
        finish_epoch(trainer)
        if (sampler := sampler_of(trainer)) is not None:
            sampler.finish_epoch()


def scalars(metrics: Mapping[str, Tensor]) -> dict[str, float]:
    """Metrics as plain numbers, without those of several elements."""
    return {name: float(value) for name, value in metrics.items() if value.numel() == 1}


def _settings(trainer: Any) -> dict[str, Any]:
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    return settings_of(trainer.optimizers, schedulers)


def _recorded_settings(trainer: Any) -> dict[str, Any] | None:
    """The settings that the run's optimizers began with; None if its training has not started."""
    optimizers, settings = vars(trainer.fit_loop).get(_SETTINGS_KEY, (None, None))
    return settings if optimizers is trainer.optimizers else None


def _training_digest(trainer: Any) -> str | None:
    """The digest of the training data set, computed when training starts."""
    loaders = getattr(trainer.fit_loop._combined_loader, "flattened", [])
    dataset = getattr(loaders[0], "dataset", None) if len(loaders) == 1 else None
    run, name = vars(trainer.fit_loop).get(_DATASET_KEY, (None, None))
    if dataset is not None and run is not dataset:
        name = dataset_digest(dataset)
        vars(trainer.fit_loop)[_DATASET_KEY] = dataset, name
    return None if dataset is None else name


def _step_missed_schedulers(trainer: Any, state: RunState) -> None:
    """Make the step of each plateau scheduler that was due when the checkpoint was written."""
    point, loop = state.point, trainer.fit_loop.epoch_loop
    if point.is_complete or loop.val_loop.restarted_mid_evaluation:
        return  # Lightning makes it after the validation that is run first
    interval, index = ("step", point.batches) if point.batches else ("epoch", point.epoch)
    if interval == "step" and loop._should_accumulate():
        return
    for config in trainer.lr_scheduler_configs:
        is_due = config.interval == interval and index % config.frequency == 0
        if config.reduce_on_plateau and is_due and config.monitor in state.metrics:
            config.scheduler.step(state.metrics[config.monitor])

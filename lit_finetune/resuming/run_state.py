"""What a checkpoint holds of a run, besides weights and optimizers, to go on as if never stopped.

The classifier and the callbacks of this package call these from their hooks of the same names.
Whoever comes first does the work.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, tensor

from lit_finetune.loading.batching import batching_of, check_batching
from lit_finetune.loading.dataset_digest import check_dataset, dataset_digest
from lit_finetune.loading.loader_order import follow_order, order_of, resume_order, sampler_of
from lit_finetune.resuming.accumulated_gradients import restore_gradients, waiting_gradients
from lit_finetune.resuming.epoch_start import repeat_epoch_start
from lit_finetune.resuming.position import ResumePoint, finish_epoch, read_point, set_loops, tidy

RUN = "lit_finetune_run"
"""Where a checkpoint holds what is known of the run."""
METRICS = "lit_finetune_monitored"
"""Where a checkpoint holds the metrics that callbacks and plateau schedulers look at."""
_TAKEN_UP, _PICTURES = "lit_finetune_resumed", "lit_finetune_pictures"


@dataclass(slots=True)
class RunState:
    """A run that is resumed."""

    point: ResumePoint
    metrics: dict[str, float] = field(default_factory=dict)
    batching: dict[str, int] = field(default_factory=dict)
    order: dict[str, Any] | None = None
    pictures: object = None
    gradients: object = None
    is_restored: bool = False

    def forget_epoch(self, *names: str) -> None:
        """Leave out metrics of an epoch whose end they had not been logged at."""
        if not self.point.batches:
            for name in names:
                self.metrics.pop(name, None)


def save_run(trainer: Any, checkpoint: dict[str, Any]) -> None:
    """Add to a checkpoint what Lightning leaves out.

    Args:
        trainer: None where a checkpoint is saved without a run.
        checkpoint: What will be saved.
    """
    checkpoint[METRICS] = scalars(trainer.callback_metrics) if trainer else {}
    known = checkpoint.setdefault(RUN, {})
    if trainer and trainer.state.fn == "fit":
        known["batching"] = batching_of(trainer)
        point = read_point(checkpoint["loops"]["fit_loop"])
        known["order"] = order_of(trainer, batches=point.batches)
        known["pictures"] = _pictures_of(trainer)
        if "gradients" not in known:  # the callback of a schedule may have come before
            known["gradients"] = waiting_gradients(trainer, point)


def load_run(trainer: Any, checkpoint: dict[str, Any]) -> RunState | None:
    """What a checkpoint says of the run that wrote it; the counters in it are put in order.

    Args:
        trainer: It resumes, evaluates or predicts; None where nothing but a module is loaded.
        checkpoint: What has been read; before Lightning reads the state of its loops from it.
    """
    if trainer is None or trainer.state.fn != "fit" or "loops" not in checkpoint:
        return None
    if not isinstance(checkpoint.get(_TAKEN_UP), RunState):  # or a file has something there
        loops, known = checkpoint["loops"]["fit_loop"], checkpoint.get(RUN, {})
        point = read_point(loops, is_settled=known.get("is_settled", False))
        tidy(loops, point)
        checkpoint[_TAKEN_UP] = RunState(
            point,
            dict(checkpoint.get(METRICS, {})),
            known.get("batching", {}),
            known.get("order"),
            known.get("pictures"),
            known.get("gradients"),
        )
    state: RunState = checkpoint[_TAKEN_UP]
    return state


def start_run(trainer: Any, state: RunState | None) -> None:
    """Set the Trainer to go on with a run, or let the order of one that begins be repeatable.

    Raises:
        ValueError: It goes on amid an epoch that is divided into batches in another way.
    """
    is_new = follow_order(trainer)
    pictures = _pictures_of(trainer)
    if state is None and is_new:
        iter(trainer.fit_loop._data_fetcher)
    if state is None or state.is_restored:
        return
    state.is_restored = True
    if state.point.batches:
        repeat_epoch_start(trainer)
    check_batching(state.batching, batching_of(trainer), batches=state.point.batches)
    left = 0 if state.point.is_last_batch else state.point.batches
    check_dataset(state.pictures, pictures, batches=left)
    resume_order(trainer, state.order, batches=state.point.batches)
    restore_gradients(trainer, state.point, state.gradients)
    set_loops(trainer, state.point)
    _step_missed_schedulers(trainer, state)
    known = {name: tensor(value) for name, value in state.metrics.items()}
    trainer._logger_connector._callback_metrics.update(known)


def end_epoch(trainer: Any, state: RunState | None) -> None:
    """Let the epoch after the first one of a resumed run begin as any other."""
    if state is not None:
        finish_epoch(trainer)
        if (sampler := sampler_of(trainer)) is not None:
            sampler.finish_epoch()


def scalars(metrics: Mapping[str, Tensor]) -> dict[str, float]:
    """Metrics as plain numbers, without those that are more than one."""
    return {name: float(value) for name, value in metrics.items() if value.numel() == 1}


def _pictures_of(trainer: Any) -> str | None:
    """Which training pictures there are, as they were when the training began."""
    loaders = getattr(trainer.fit_loop._combined_loader, "flattened", [])
    dataset = getattr(loaders[0], "dataset", None) if len(loaders) == 1 else None
    known, name = vars(trainer.fit_loop).get(_PICTURES, (None, None))
    if dataset is not None and known is not dataset:
        name = dataset_digest(dataset)
        vars(trainer.fit_loop)[_PICTURES] = dataset, name
    return None if dataset is None else name


def _step_missed_schedulers(trainer: Any, state: RunState) -> None:
    """Give each plateau scheduler the step that was due when the checkpoint was written."""
    point, loop = state.point, trainer.fit_loop.epoch_loop
    if point.is_settled or loop.val_loop.restarted_mid_evaluation:
        return  # with the validation that comes first, Lightning makes it
    interval, index = ("step", point.batches) if point.batches else ("epoch", point.epoch)
    if interval == "step" and loop._should_accumulate():
        return
    for config in trainer.lr_scheduler_configs:
        is_due = config.interval == interval and index % config.frequency == 0
        if config.reduce_on_plateau and is_due and config.monitor in state.metrics:
            config.scheduler.step(state.metrics[config.monitor])

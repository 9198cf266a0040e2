"""Print a report at the end of a run."""

from collections.abc import Iterator
from textwrap import indent

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from typing_extensions import override

from lit_finetune.files.terminal_text import printable
from lit_finetune.modules.fsdp1 import full_sizes, parameters_by_name
from lit_finetune.probe.fit import selection_scores
from lit_finetune.schedules.plan import format_plan

from .checkpoint import LastCheckpoint
from .freeze_unfreeze import FreezeUnfreezeCallback
from .linear_probe import LinearProbe

_METRICS = ("train/loss", "val/loss", "val/acc", "val/acc_macro", "val/f1")


class RunReport(Callback):
    """Print at the end of training what was trained, its metrics, and where the files are."""

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Not in `on_fit_end`: a progress bar may still be active.
        is_trial = getattr(trainer, "fast_dev_run", False)  # mypy does not see this attribute
        if stage == "fit" and trainer.is_global_zero and not is_trial:
            print(printable(report(trainer, pl_module)))


def report(trainer: Trainer, pl_module: LightningModule) -> str:
    """The report on a run that has ended, in a few lines."""
    facts = list(_facts(trainer, pl_module))
    width = max(len(name) for name, _ in facts)
    lines = [f"{name:<{width}}  {indent(text, ' ' * (width + 2)).strip()}" for name, text in facts]
    return "\n".join(["What was trained", *lines])


def _facts(trainer: Trainer, pl_module: LightningModule) -> Iterator[tuple[str, str]]:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set by a connector
        if isinstance(callback, LinearProbe) and callback.result is not None:
            acc, loss, samples = selection_scores(callback.result)
            yield "probe", f"accuracy {acc:.4f}, loss {loss:.4f} on {samples}"
        if isinstance(callback, FreezeUnfreezeCallback) and callback.plan is not None:
            numel = full_sizes(trainer.model or pl_module)
            sizes = {name: numel[id(p)] for name, p in parameters_by_name(pl_module).items()}
            yield "phases", format_plan(callback.plan, sizes)
    metrics = trainer.callback_metrics
    values = [f"{name} {metrics[name]:.4f}" for name in _METRICS if name in metrics]
    steps = f"{trainer.current_epoch} epochs, {trainer.global_step} steps"
    yield "at the end", ", ".join([steps, *values])
    for checkpoint in trainer.checkpoint_callbacks:
        if isinstance(checkpoint, ModelCheckpoint):
            yield from _checkpoint_facts(checkpoint)
    for folder in dict.fromkeys(logger.log_dir or logger.save_dir for logger in trainer.loggers):
        yield "logs", str(folder)


def _checkpoint_facts(checkpoint: ModelCheckpoint) -> Iterator[tuple[str, str]]:
    name = "last" if isinstance(checkpoint, LastCheckpoint) else "best"
    if checkpoint.best_model_path and checkpoint.best_model_score is not None:
        score = f"{checkpoint.monitor} {checkpoint.best_model_score:.4f}"
        yield name, f"{checkpoint.best_model_path} ({score})"
    elif checkpoint.best_model_path:
        yield name, checkpoint.best_model_path
    if checkpoint.last_model_path:
        yield "last", checkpoint.last_model_path

"""What a run did, told at its end."""

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.console import Console
from rich.table import Table
from typing_extensions import override

from lit_finetune.plan import format_plan

from .freeze_unfreeze import FreezeUnfreezeCallback


class RunReport(Callback):
    """Print at the end of training what was trained, how well, and where everything is."""

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and not getattr(trainer, "fast_dev_run", False):
            Console().print(report(trainer, pl_module))


def report(trainer: Trainer, pl_module: LightningModule) -> Table:
    """A table of two columns about a run that has ended."""
    table = Table(show_header=False, title="What was trained", title_justify="left")
    table.add_column()
    table.add_column(overflow="fold")  # paths are there to be copied whole
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set by a connector
        if isinstance(callback, FreezeUnfreezeCallback) and callback.plan is not None:
            sizes = {name: p.numel() for name, p in pl_module.named_parameters()}
            table.add_row("phases", format_plan(callback.plan, sizes))
    table.add_row("epochs, steps", f"{trainer.current_epoch}, {trainer.global_step}")
    shown = ("train/loss", "val/loss", "val/acc", "val/acc_macro", "val/f1")
    metrics = trainer.callback_metrics
    table.add_row("at the end", ", ".join(f"{k} {metrics[k]:.4f}" for k in shown if k in metrics))
    for checkpoint in trainer.checkpoint_callbacks:
        if isinstance(checkpoint, ModelCheckpoint) and checkpoint.best_model_path:
            score = f"{checkpoint.monitor} {checkpoint.best_model_score:.4f}: "
            table.add_row(
                "best", (score if checkpoint.monitor else "") + checkpoint.best_model_path
            )
        if isinstance(checkpoint, ModelCheckpoint) and checkpoint.last_model_path:
            table.add_row("last", checkpoint.last_model_path)
    for logger in trainer.loggers:
        table.add_row("logs", str(logger.log_dir or logger.save_dir))
    return table

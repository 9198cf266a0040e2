"""The loggers and callbacks that a run has by default, and the folders that it writes to."""

from collections.abc import Iterable

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from lit_finetune.callbacks import PredictionWriter, RunReport, SparingProgressBar

_KINDS = (ProgressBar, LearningRateMonitor, PredictionWriter, RunReport, ModelCheckpoint)


def default_loggers(root: str) -> list[Logger]:
    """TensorBoard and CSV, in one folder for each run."""
    # First CSV: it would warn of a folder that already has files.
    table = CSVLogger(root)
    return [table, TensorBoardLogger(root, name=table.name, version=table.version)]


def default_callbacks(
    *,
    checkpoints: Iterable[Callback],
    predictions: Callback,
    has_progress_bar: bool,
    has_logger: bool,
) -> list[Callback]:
    """The callbacks of a run whose configuration names none."""
    return [
        *([SparingProgressBar()] if has_progress_bar else []),
        *([LearningRateMonitor()] if has_logger else []),
        *checkpoints,
        predictions,
        RunReport(),
    ]


def with_defaults(
    own: Callback | list[Callback] | None, defaults: Iterable[Callback]
) -> list[Callback]:
    """The user's own callbacks, and each default of a kind that is not among them.

    >>> from lightning.pytorch.callbacks import TQDMProgressBar
    >>> own, bar, monitor = TQDMProgressBar(), SparingProgressBar(), LearningRateMonitor()
    >>> with_defaults(own, [bar, monitor]) == [own, monitor]
    True
    """
    callbacks = own if isinstance(own, list) else [own] if own else []
    kinds = {kind for kind in _KINDS for callback in callbacks if isinstance(callback, kind)}
    return [*callbacks, *(each for each in defaults if not isinstance(each, tuple(kinds)))]


def output_folders(
    root: str, dirpath: str | None, *, logs: bool, has_checkpoints: bool, is_fit: bool
) -> dict[str, str]:
    """The folders that a run writes to, by the options that set them.

    >>> output_folders("runs", None, logs=False, has_checkpoints=True, is_fit=True)
    {'--trainer.default_root_dir': 'runs'}
    >>> output_folders("runs", None, logs=False, has_checkpoints=True, is_fit=False)
    {}

    Args:
        root: The Trainer's folder.
        dirpath: The folder of checkpoints, if it is set.
        logs: Whether there are loggers.
        has_checkpoints: Whether checkpointing is enabled.
        is_fit: Whether the run trains.
    """
    if not logs and not (has_checkpoints and is_fit):
        return {}
    folders = {"--trainer.default_root_dir": root}
    if has_checkpoints and dirpath:
        folders["--checkpoint.dirpath"] = dirpath
    return folders

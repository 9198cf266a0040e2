"""Report errors while a checkpoint is restored in one sentence that says what to do."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from lightning.pytorch.utilities.migration.utils import migrate_checkpoint

from lit_finetune.checkpoints.read import refuse_unsafe
from lit_finetune.checkpoints.sharded import plain_data_only, plain_part
from lit_finetune.checkpoints.structure import mismatched_part
from lit_finetune.distributed.wrapping import shards_parameters
from lit_finetune.resuming.optimizer_settings import refuse_missing_options
from lit_finetune.resuming.run_state import compare_settings

_RESTORE_STEPS = (
    "restore_model",
    "restore_datamodule",
    "restore_callbacks",
    "restore_training_state",
)
"""Lightning's methods for restoring a checkpoint."""
_PYTHON_ERRORS = (LookupError, TypeError, AttributeError, ArithmeticError, AssertionError)
"""The errors of code that loads data of another form than it saved."""


def migrate(checkpoint: dict[str, Any]) -> None:
    """Migrate a checkpoint of an older Lightning to the current form.

    Raises:
        ValueError: It does not have the form of that version.
    """
    with _errors_as_damage():
        migrate_checkpoint(checkpoint)


def report_damaged_checkpoints(trainer: Any) -> None:
    """Let a Trainer report a damaged checkpoint clearly; a second call does nothing.

    Callbacks, loops and optimizers load their parts of the file, and raise Python errors on data of
    another form.
    """
    connector = trainer._checkpoint_connector
    if isinstance(connector.resume_start, partial):
        return
    connector.resume_start = partial(_resume_start, connector.resume_start, trainer)
    for name in _RESTORE_STEPS:
        setattr(connector, name, partial(_restore, getattr(connector, name), trainer, name))


def _resume_start(
    resume_start: Callable[..., None],
    trainer: Any,
    checkpoint_path: Any = None,
    weights_only: bool | None = None,
) -> None:
    refuse_unsafe(weights_only)
    if not checkpoint_path or not shards_parameters(trainer.strategy):
        with _errors_as_damage():
            resume_start(checkpoint_path, weights_only=weights_only)
        return
    # A strategy that shards reads it itself, without a CheckpointIO.
    plain_part(checkpoint_path, skip_data=True)
    with plain_data_only(checkpoint_path), _errors_as_damage():
        resume_start(checkpoint_path, weights_only=weights_only)


def _restore(restore: Callable[[], None], trainer: Any, name: str) -> None:
    with _errors_as_damage():
        checkpoint = trainer._checkpoint_connector._loaded_checkpoint or {}
        mismatches = [
            (part, mismatched_part(expected, state, allow_none=part in _lenient_parts(trainer)))
            for part, expected, state in _states(trainer, name, checkpoint)
        ]
        if name == "restore_training_state" and checkpoint and trainer.state.fn == "fit":
            compare_settings(trainer, checkpoint)
        try:
            restore()  # a clearer error of its own comes first
        except _PYTHON_ERRORS:
            _refuse_other_optimizers(trainer, name)
            raise
        _refuse_other_optimizers(trainer, name)
        for part, path in mismatches:
            if path:
                raise TypeError(f"{part}: `{path}`")


def _refuse_other_optimizers(trainer: Any, name: str) -> None:
    """Refuse states of other optimizers, which torch accepts until the first step."""
    if name == "restore_training_state" and trainer.state.fn == "fit":
        for optimizer in trainer.optimizers:
            refuse_missing_options(optimizer)


def _lenient_parts(trainer: Any) -> set[str]:
    """The parts whose saved states may have None for a value of this run.

    These are the loops, and all callbacks other than Lightning's.
    """
    return {"loops"} | {
        callback.state_key
        for callback in trainer.callbacks
        if not type(callback).__module__.startswith("lightning.pytorch.callbacks.")
    }


def _states(
    trainer: Any, name: str, checkpoint: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """The parts that a step restores: name, state in this run, state in the checkpoint."""
    if name == "restore_callbacks":
        states = checkpoint.get("callbacks", {})
        for callback in trainer.callbacks:
            key = callback.state_key
            if key in states:
                yield key, callback.state_dict(), states[key]
    elif name == "restore_training_state" and trainer.state.fn == "fit":
        yield "loops", trainer.fit_loop.state_dict(), checkpoint.get("loops", {}).get("fit_loop")
        for config, state in zip(
            trainer.lr_scheduler_configs, checkpoint.get("lr_schedulers", []), strict=False
        ):
            yield type(config.scheduler).__name__, config.scheduler.state_dict(), state
        for optimizer, state in zip(
            trainer.optimizers, checkpoint.get("optimizer_states", []), strict=False
        ):
            groups = zip(optimizer.param_groups, state["param_groups"], strict=False)
            for expected, saved in groups:  # a sharded run names the parameters
                options = {key: value for key, value in expected.items() if key != "params"}
                yield type(optimizer).__name__, options, saved


@contextmanager
def _errors_as_damage() -> Iterator[None]:
    try:
        yield
    except _PYTHON_ERRORS as error:
        raise ValueError(
            "The checkpoint cannot be restored: a part of it has an unexpected form"
            f" ({type(error).__name__}: {str(error)[:200]}). It is damaged, was changed, or is of"
            " other callbacks or versions. Start a new run from its weights alone, passed as"
            " `weights`."
        ) from error

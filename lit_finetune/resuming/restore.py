"""What goes wrong while a checkpoint is taken up, in one sentence that says what to do."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from lightning.pytorch.utilities.migration.utils import migrate_checkpoint

from lit_finetune.checkpoints.read import refuse_unsafe
from lit_finetune.checkpoints.sharded import plain_data_only, plain_part
from lit_finetune.checkpoints.structure import mismatched_part
from lit_finetune.distributed.wrapping import shards_parameters

_STEPS = ("restore_model", "restore_datamodule", "restore_callbacks", "restore_training_state")
"""Lightning's, once it has read a checkpoint."""
_OF_PYTHON = (LookupError, TypeError, AttributeError, ArithmeticError, AssertionError)
"""What code raises that is given other data than it wrote."""


def migrate(checkpoint: dict[str, Any]) -> None:
    """Bring a checkpoint of an older Lightning to the form of this one.

    Raises:
        ValueError: It is not made as that version made them.
    """
    with _told_as_damage():
        migrate_checkpoint(checkpoint)


def tell_damage(trainer: Any) -> None:
    """Let a Trainer say in a sentence that a checkpoint is damaged; the second time does nothing.

    Its callbacks, loops and optimizers each take up what the file has for them, and a Python error
    is all that they have for data of another form.
    """
    connector = trainer._checkpoint_connector
    if isinstance(connector.resume_start, partial):
        return
    connector.resume_start = partial(_resume_start, connector.resume_start, trainer)
    for name in _STEPS:
        setattr(connector, name, partial(_restore, getattr(connector, name), trainer, name))


def _resume_start(
    resume_start: Callable[..., None],
    trainer: Any,
    checkpoint_path: Any = None,
    weights_only: bool | None = None,
) -> None:
    refuse_unsafe(weights_only)
    if not checkpoint_path or not shards_parameters(trainer.strategy):
        with _told_as_damage():
            resume_start(checkpoint_path, weights_only=weights_only)
        return
    # A strategy that shards reads it itself: Lightning has no CheckpointIO for that.
    plain_part(checkpoint_path, skip_data=True)
    with plain_data_only(checkpoint_path), _told_as_damage():
        resume_start(checkpoint_path, weights_only=weights_only)


def _restore(restore: Callable[[], None], trainer: Any, name: str) -> None:
    with _told_as_damage():
        found = trainer._checkpoint_connector._loaded_checkpoint or {}
        wrong = [
            (part, mismatched_part(ours, state, allow_none=part in _of_users(trainer)))
            for part, ours, state in _states(trainer, name, found)
        ]
        restore()  # whoever has a message of its own for what is wrong comes first
        for part, place in wrong:
            if place:
                raise TypeError(f"{part}: `{place}`")


def _of_users(trainer: Any) -> set[str]:
    """Whose states may have None for what is something in this run, as only they know.

    These are the callbacks that are not Lightning's own, and the loops.
    """
    return {"loops"} | {
        callback.state_key
        for callback in trainer.callbacks
        if not type(callback).__module__.startswith("lightning.pytorch.callbacks.")
    }


def _states(
    trainer: Any, name: str, checkpoint: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """What is about to take up a state, by name: its own state, and the one in the checkpoint."""
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
            for ours, found in groups:  # a sharded run calls parameters by their names
                options = {key: value for key, value in ours.items() if key != "params"}
                yield type(optimizer).__name__, options, found


@contextmanager
def _told_as_damage() -> Iterator[None]:
    try:
        yield
    except _OF_PYTHON as error:
        raise ValueError(
            "The checkpoint cannot be taken up: a part of it is not what whoever wrote it wrote"
            f" there ({type(error).__name__}: {str(error)[:200]}). It is damaged, was changed, or"
            " is of other callbacks or versions. Start anew from its weights alone, passed as"
            " `weights`."
        ) from error

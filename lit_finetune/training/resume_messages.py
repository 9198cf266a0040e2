"""Messages of a resumed run: another augmentation, or nothing left to train."""

from collections.abc import Mapping
from typing import Any

from lit_finetune.files.terminal_text import printable

DATA_KEY = "lit_finetune_data"
"""The key of a checkpoint's data about the augmentation."""


def augmentation_of(datamodule: Any) -> str | None:
    """The augmentation of a data module, in words; None if unknown.

    >>> from types import SimpleNamespace
    >>> augmentation_of(SimpleNamespace(train_augmentation="rand"))
    'rand'
    """
    given = getattr(datamodule, "train_augmentation", None)
    return given if given is None or isinstance(given, str) else type(given).__name__


def augmentation_line(checkpoint: Mapping[str, Any], datamodule: Any) -> str | None:
    """The message if a resumed run has another augmentation; None if not."""
    saved, current = checkpoint.get(DATA_KEY), augmentation_of(datamodule)
    before = saved.get("train_augmentation") if isinstance(saved, Mapping) else None
    if not isinstance(before, str) or current is None or before == current:
        return None
    return (
        f"`train_augmentation` is {current!r}, but was {printable(before)[:80]!r} in the run of the"
        " checkpoint: from here on pictures are augmented differently than without a stop."
    )


def finished_line(step: int, epoch: int, max_epochs: int | None) -> str:
    """The message if a resumed run had ended before."""
    return (
        f"Nothing was trained or validated: the run of the checkpoint had ended, at step {step}"
        f" after {epoch} epochs (max_epochs={max_epochs}). Raise `max_epochs` or `max_steps` to go"
        " on; `validate` measures what it has reached."
    )

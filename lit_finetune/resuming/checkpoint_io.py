"""Write checkpoints atomically, and remove only those that the run wrote."""

import io
import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from lit_finetune.checkpoints.read import read_checkpoint, refuse_unsafe
from lit_finetune.checkpoints.removal import is_local
from lit_finetune.checkpoints.source import resolve_checkpoint
from lit_finetune.distributed.wrapping import shards_parameters
from lit_finetune.files.atomic_write import atomic_write
from lit_finetune.files.terminal_text import printable


def use_atomic_checkpoints(strategy: Strategy) -> None:
    """Let a strategy write and remove checkpoints as `AtomicCheckpointIO` does.

    A CheckpointIO that the user has chosen is kept.
    """
    if type(strategy.checkpoint_io) is not TorchCheckpointIO:
        return
    strategy.checkpoint_io = AtomicCheckpointIO()
    if shards_parameters(strategy):  # it writes without its CheckpointIO, but removes with it
        save = partial(_save_and_record, strategy.save_checkpoint, strategy.checkpoint_io)
        strategy.save_checkpoint = save  # type: ignore[method-assign]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint to a temporary file next to it first; remove only those it has written.

    Lightning writes to the system's temporary folder and moves the file. On another file system,
    moving is copying: a kill or a full disk in between leaves an incomplete checkpoint.
    """

    def __init__(self) -> None:
        self._written: set[str] = set()

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        if storage_options is not None or not is_local(str(path)):
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            content = io.BytesIO()  # torch does not raise an OSError on a full disk
            torch.save(checkpoint, content)
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                file.write(content.getbuffer())
        self.add_written(path)

    def add_written(self, path: str | Path) -> None:
        """Record a checkpoint that this run wrote, now or before it was resumed."""
        self._written.add(_resolved_path(path))

    @override
    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The content of a file or a URL, or the weights in a folder of a sharded run."""
        refuse_unsafe(weights_only)
        source = resolve_checkpoint(path)
        return read_checkpoint(source, name=path, map_location=map_location or "cpu")

    @override
    def remove_checkpoint(self, path: str | Path) -> None:
        if _resolved_path(path) in self._written:
            super().remove_checkpoint(path)
        else:
            rank_zero_warn(
                f"The checkpoint that this run was resumed from names '{printable(path)}' as an"
                " earlier one to be removed. This run did not write it, so it stays."
            )


def _save_and_record(
    save: Any, checkpoint_io: AtomicCheckpointIO, *args: Any, **kwargs: Any
) -> None:
    save(*args, **kwargs)
    checkpoint_io.add_written(kwargs.get("filepath") or args[1])


def _resolved_path(path: str | Path) -> str:
    """A path with its folder resolved; the last part may be a link."""
    if not is_local(str(path)):
        return str(path)
    parent, name = os.path.split(path)
    return os.path.join(os.path.realpath(parent), name)

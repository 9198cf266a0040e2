"""How checkpoints get to the disk and back: whole, and none removed that the run did not write."""

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

    A CheckpointIO that the user has chosen stays.
    """
    if type(strategy.checkpoint_io) is not TorchCheckpointIO:
        return
    strategy.checkpoint_io = AtomicCheckpointIO()
    if shards_parameters(strategy):  # it writes without its CheckpointIO, but removes with it
        save = partial(_save_and_note, strategy.save_checkpoint, strategy.checkpoint_io)
        strategy.save_checkpoint = save  # type: ignore[method-assign]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint beside its place first; remove only those that were written by this.

    Lightning writes it to the folder of temporary files and moves it. Where that is on another file
    system, moving is copying: a kill or a full disk amid it leaves half a checkpoint.
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
            content = io.BytesIO()  # torch gives a full disk another name, and no OSError
            torch.save(checkpoint, content)
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                file.write(content.getbuffer())
        self.note(path)

    def note(self, path: str | Path) -> None:
        """Take note of a checkpoint that this run wrote, now or before it was resumed."""
        self._written.add(_place(path))

    @override
    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """What a file or an address holds, or the weights in a folder of a sharded run."""
        refuse_unsafe(weights_only)
        source = resolve_checkpoint(path)
        return read_checkpoint(source, name=path, map_location=map_location or "cpu")

    @override
    def remove_checkpoint(self, path: str | Path) -> None:
        if _place(path) in self._written:
            super().remove_checkpoint(path)
        else:
            rank_zero_warn(
                f"The checkpoint that this run was resumed from names '{printable(path)}' as an"
                " earlier one to be removed. This run did not write it, so it stays."
            )


def _save_and_note(save: Any, noting: AtomicCheckpointIO, *args: Any, **kwargs: Any) -> None:
    save(*args, **kwargs)
    noting.note(kwargs.get("filepath") or args[1])


def _place(path: str | Path) -> str:
    """A path by the folder that it leads to; what is there may be a link itself."""
    if not is_local(str(path)):
        return str(path)
    above, name = os.path.split(path)
    return os.path.join(os.path.realpath(above), name)

"""Read checkpoints as plain data, with clear error messages."""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_finetune.checkpoints.structure import damaged_part
from lit_finetune.files.diagnose import (
    FIRST_BYTES,
    NoWeightsError,
    describe_content,
    is_safetensors,
    refuse_foreign_content,
    refuse_oversized_members,
    refuse_oversized_tensors,
)
from lit_finetune.files.pickle_check import PickleError
from lit_finetune.files.terminal_text import printable
from lit_finetune.files.torch_files import load_torch_file, named_tensors, open_torch_file


def read_checkpoint(file: Any, *, name: str | Path | None = None, **options: Any) -> dict[str, Any]:
    """The content of a Lightning checkpoint; nothing in it is imported or called.

    Args:
        file: A path, or an open file.
        name: Its name in messages; by default its path.
        **options: As for `load_plain`.

    Raises:
        ValueError: It has more than plain data, is damaged, or is no Lightning checkpoint.
    """
    content = load_plain(file, name=name, **options)
    is_checkpoint = isinstance(content, dict) and isinstance(content.get("state_dict"), Mapping)
    if not is_checkpoint or not isinstance(content.get("pytorch-lightning_version"), str):
        raise ValueError(
            f"{_display_name(file, name)} is no checkpoint of Lightning, but a"
            f" {describe_content(content)}. To start from the weights in it, pass its path as"
            " `weights`."
        )
    refuse_damaged(content, name or _display_name(file, name))
    checkpoint: dict[str, Any] = content
    return checkpoint


def refuse_damaged(content: Any, name: str | Path) -> None:
    """Refuse a checkpoint with an invalid part.

    Raises:
        ValueError: Names the part.
    """
    part = damaged_part(content) if isinstance(content, Mapping) else "pytorch-lightning_version"
    if part:
        raise ValueError(
            f"{printable(name)} is damaged, or was changed: its part `{printable(part)}` is not"
            " valid. Copy or download it again, or start from its weights alone: pass its"
            " path as `weights`."
        )


def refuse_unsafe(weights_only: bool | None) -> None:
    """Refuse `weights_only=False`, which would run any code in a checkpoint.

    Raises:
        ValueError: `weights_only` is False; the message says what to do instead.
    """
    if weights_only is False:
        raise ValueError(
            "`weights_only=False` would run any code in a checkpoint, and is not supported: leave"
            " it out. If the checkpoint holds objects of your own classes, allow these first:"
            " `torch.serialization.add_safe_globals([MyClass])`."
        )


def load_plain(
    file: Any,
    *,
    name: str | Path | None = None,
    map_location: Any = "cpu",
    skip_data: bool = False,
) -> Any:
    """The content of a file of `torch.save`, if it is plain data.

    Args:
        file: A path, or an open file.
        name: Its name in messages; by default its path.
        map_location: As for `torch.load`.
        skip_data: Whether to leave out the data of tensors.

    Raises:
        ValueError: It has more than plain data, or is damaged.
    """
    if isinstance(file, str | Path):
        with open_torch_file(file) as open_file:
            options = {"map_location": map_location, "skip_data": skip_data}
            return load_plain(open_file, name=name or file, **options)
    start = file.read(FIRST_BYTES)
    file.seek(0)
    if is_safetensors(start):
        raise ValueError(
            f"{_display_name(file, name)} holds weights (safetensors), and is no checkpoint: load"
            " it with `weights`, on the command line `--model.weights`."
        )
    try:
        refuse_foreign_content(start)
        size = file.seek(0, 2)
        file.seek(0)
        if start.startswith(b"PK"):
            with zipfile.ZipFile(file) as archive:
                refuse_oversized_members(archive.infolist(), size)
            file.seek(0)
        content = load_torch_file(file, map_location=map_location, skip_data=skip_data)
        refuse_oversized_tensors(dict(named_tensors(content)), size)
        return content
    # On damaged files torch raises almost any error. Its errors tell how to run the code, so they
    # are not shown as the cause.
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"{_display_name(file, name)} {_what_is_wrong(error)}") from None
    finally:
        file.seek(0)


def _display_name(file: Any, name: str | Path | None) -> str:
    return printable(name or (file if isinstance(file, str | Path) else "The checkpoint"))


def _what_is_wrong(error: Exception) -> str:
    """A sentence on an error of torch, and what to do."""
    if isinstance(error, NoWeightsError):
        return f"is no checkpoint: it {error}".replace("weights file", "checkpoint")
    if isinstance(error, PickleError):
        return f"{error}, so it was not opened: it is damaged, or was made to do harm."
    unsafe = re.search(r"(?:GLOBAL|[Uu]nsupported (?:class|global)) ([\w.]+)", str(error))
    if unsafe:
        return (
            f"holds more than plain data: `{unsafe[1]}` would be imported and called, which can run"
            " any code, so it was not opened. Ask for a checkpoint without objects in it, or for"
            " the weights alone (safetensors), which `weights` loads."
        )
    return (
        "is no checkpoint of plain data, or is cut short or damaged, so it was not opened. Copy or"
        " download it again."
    )

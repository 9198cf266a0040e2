"""Read checkpoints as plain data, with messages of our own."""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_finetune.checkpoints.structure import damaged_part
from lit_finetune.files.diagnose import (
    FIRST_BYTES,
    NoWeightsError,
    is_safetensors,
    refuse_claims,
    refuse_inflated,
    refuse_signature,
    what_it_has,
)
from lit_finetune.files.pickle_check import PickleError
from lit_finetune.files.terminal_text import printable
from lit_finetune.files.torch_files import load_torch_file, open_torch_file, tensors_in


def read_checkpoint(file: Any, *, name: str | Path | None = None, **options: Any) -> dict[str, Any]:
    """What a checkpoint of Lightning holds; nothing in it is imported or called.

    Args:
        file: A path, or an open file.
        name: What messages call it; by default its path.
        **options: As for `load_plain`.

    Raises:
        ValueError: It holds more than plain data, is damaged, or is no checkpoint of Lightning.
    """
    content = load_plain(file, name=name, **options)
    is_checkpoint = isinstance(content, dict) and isinstance(content.get("state_dict"), Mapping)
    if not is_checkpoint or not isinstance(content.get("pytorch-lightning_version"), str):
        raise ValueError(
            f"{_called(file, name)} is no checkpoint of Lightning, but a {what_it_has(content)}. To"
            " start from the weights in it, pass its path as `weights`."
        )
    refuse_damaged(content, name or _called(file, name))
    checkpoint: dict[str, Any] = content
    return checkpoint


def refuse_damaged(content: Any, called: str | Path) -> None:
    """Refuse a checkpoint with a part that cannot be what should stand there.

    Raises:
        ValueError: Names the part.
    """
    part = damaged_part(content) if isinstance(content, Mapping) else "pytorch-lightning_version"
    if part:
        raise ValueError(
            f"{printable(called)} is damaged, or was changed: its part `{printable(part)}` cannot"
            " be what it says. Copy or download it again, or start from its weights alone: pass its"
            " path as `weights`."
        )


def refuse_unsafe(weights_only: bool | None) -> None:
    """Refuse to unpickle whatever a checkpoint holds.

    Raises:
        ValueError: `weights_only` is False; the message says what to do instead.
    """
    if weights_only is False:
        raise ValueError(
            "`weights_only=False` would run any code that a checkpoint holds, and is not followed:"
            " leave it out. If the checkpoint holds objects of classes of your own, name these"
            " first: `torch.serialization.add_safe_globals([MyClass])`."
        )


def load_plain(
    file: Any,
    *,
    name: str | Path | None = None,
    map_location: Any = "cpu",
    skip_data: bool = False,
) -> Any:
    """What a file of `torch.save` holds, if that is plain data.

    Args:
        file: A path, or an open file.
        name: What messages call it; by default its path.
        map_location: As for `torch.load`.
        skip_data: Whether tensors may be without their data, for whoever needs but the rest.

    Raises:
        ValueError: It holds more than plain data, or is damaged.
    """
    if isinstance(file, str | Path):
        with open_torch_file(file) as opened:
            options = {"map_location": map_location, "skip_data": skip_data}
            return load_plain(opened, name=name or file, **options)
    start = file.read(FIRST_BYTES)
    file.seek(0)
    if is_safetensors(start):
        raise ValueError(
            f"{_called(file, name)} holds weights (safetensors), and is no checkpoint: load it with"
            " `weights`, on the command line `--model.weights`."
        )
    try:
        refuse_signature(start)
        size = file.seek(0, 2)
        file.seek(0)
        if start.startswith(b"PK"):
            with zipfile.ZipFile(file) as archive:
                refuse_claims(archive.infolist(), size)
            file.seek(0)
        content = load_torch_file(file, map_location=map_location, skip_data=skip_data)
        refuse_inflated(dict(tensors_in(content)), size)
        return content
    # A damaged file makes torch raise nearly anything. What it says of code that it did not run is
    # how to run it, so its error is not shown as the cause either.
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"{_called(file, name)} {_what_is_wrong(error)}") from None
    finally:
        file.seek(0)


def _called(file: Any, name: str | Path | None) -> str:
    return printable(name or (file if isinstance(file, str | Path) else "The checkpoint"))


def _what_is_wrong(error: Exception) -> str:
    """What torch's error says of a file, and what to do."""
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

"""Read checkpoints as plain data, with messages of our own."""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lit_finetune.checkpoint_form import damaged_part
from lit_finetune.not_weights import (
    FIRST_BYTES,
    NoWeightsError,
    is_safetensors,
    refuse_claims,
    refuse_inflated,
    refuse_signature,
    what_it_has,
)
from lit_finetune.terminal_text import printable


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


def load_plain(
    file: Any,
    *,
    name: str | Path | None = None,
    map_location: Any = "cpu",
    mmap: bool = False,
    weights_only: bool = True,
) -> Any:
    """What a file of `torch.save` holds, if that is plain data.

    Args:
        file: A path, or an open file.
        name: What messages call it; by default its path.
        map_location: As for `torch.load`.
        mmap: Whether tensors stay in the file, for whoever needs but the rest.
        weights_only: False runs whatever code the file holds: only ever the user's explicit wish.

    Raises:
        ValueError: It holds more than plain data, or is damaged.
    """
    start = _first_bytes(file)
    if is_safetensors(start):
        raise ValueError(
            f"{_called(file, name)} holds weights (safetensors), and is no checkpoint: load it with"
            " `weights`, on the command line `--model.weights`."
        )
    is_mapped = mmap and isinstance(file, str | Path) and start.startswith(b"PK")
    options = {"map_location": map_location, "weights_only": weights_only}
    try:
        refuse_signature(start)
        size = _refuse_inflated_archive(file) if start.startswith(b"PK") else None
        content = torch.load(file, mmap=is_mapped or None, **options)
        if size is not None and isinstance(content, Mapping):
            refuse_inflated(_tensors(content.get("state_dict")), size)
        return content
    except OSError:
        raise
    # A damaged file makes torch raise nearly anything. What it says of code that it did not run is
    # how to run it, so its error is not shown as the cause either.
    except Exception as error:
        if not weights_only:
            raise
        raise ValueError(f"{_called(file, name)} {_what_is_wrong(error)}") from None
    finally:
        if not isinstance(file, str | Path):
            file.seek(0)


def _refuse_inflated_archive(file: Any) -> int:
    """Refuse a zip archive that claims more than it has; how large it is."""
    place = file.tell() if hasattr(file, "tell") else 0
    size = Path(file).stat().st_size if isinstance(file, str | Path) else file.seek(0, 2)
    with zipfile.ZipFile(file) as archive:
        refuse_claims(archive.infolist(), size)
    if hasattr(file, "seek"):
        file.seek(place)
    return int(size)


def _tensors(state: Any) -> dict[str, torch.Tensor]:
    named = state.items() if isinstance(state, Mapping) else ()
    return {str(name): each for name, each in named if isinstance(each, torch.Tensor)}


def _first_bytes(file: Any) -> bytes:
    if isinstance(file, str | Path):
        with Path(file).open("rb") as opened:
            return opened.read(FIRST_BYTES)
    start: bytes = file.read(FIRST_BYTES)
    file.seek(0)
    return start


def _called(file: Any, name: str | Path | None) -> str:
    return printable(name or (file if isinstance(file, str | Path) else "The checkpoint"))


def _what_is_wrong(error: Exception) -> str:
    """What torch's error says of a file, and what to do."""
    if isinstance(error, NoWeightsError):
        return str(error)
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

"""Read weights files of any kind without running the code that may be in them."""

import json
import re
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from lit_finetune._names import nearest

# Training scripts leave their arguments and a best accuracy beside the weights. These types hold
# data and run nothing, so a file with them is read as well.
_NUMPY_SCALAR = np.float64(0).__reduce__()[0]
_PLAIN_DATA: list[Any] = [
    Namespace,
    np.dtype,
    *{type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "?")},
    (_NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
    (_NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
]
# What people have in the place of a weights file, by the file's first bytes.
_NO_WEIGHTS = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself: run `git lfs pull`",
    b"<": "a web page, not a weights file: download it again",
    b"\x1f\x8b": "compressed with gzip: unpack it first",
    b"\x89HDF": "an HDF5 file, as Keras writes them: convert it to safetensors",
}
_MOST_LEVELS = 3


def read_entries(path: str | Path) -> dict[str, dict[str, Tensor]]:
    """All state dicts in a weights file, each under the dotted key at which it was found.

    The key of a file that is itself a state dict is "". Tensors may be mapped from the file: copy
    what is kept.

    Raises:
        FileNotFoundError: There is no such file; the message names the nearest ones.
        ValueError: The file is damaged, holds no weights, or would have to run code.
    """
    path = Path(path).expanduser()
    _check_exists(path)
    content = _read_shards(path) if path.name.endswith(".index.json") else _read(path)
    entries = _find_state_dicts(content)
    if not entries:
        keys = ", ".join(map(str, list(content)[:10])) if isinstance(content, dict) else ""
        what = f"{type(content).__name__} with the keys: {keys}" if keys else type(content).__name__
        raise ValueError(f"{path} has no tensors by name, but a {what}.")
    return entries


def _check_exists(path: Path) -> None:
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a weights file.{_files_in(path)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"No weights file {path}: its folder does not exist.")
    if not path.is_file():
        near = nearest(path.name, (file.name for file in path.parent.iterdir()))
        hint = near or _files_in(path.parent)
        raise FileNotFoundError(f"No weights file {path.name!r} in {path.parent}.{hint}")


def _files_in(folder: Path) -> str:
    names = sorted(file.name for file in folder.iterdir() if file.is_file())[:5]
    return f" The folder has: {', '.join(names) or 'no files'}."


def _read_shards(index: Path) -> dict[str, Tensor]:
    """The tensors of all the files that a Hugging Face index names, from the index's folder."""
    try:
        names = {Path(name).name for name in json.loads(index.read_text())["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is no index of weights files: no `weight_map`.") from error
    shards = [read_entries(index.with_name(name)) for name in sorted(names)]
    return {name: tensor for shard in shards for name, tensor in shard.get("", {}).items()}


def _read(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(64)
    is_safetensors = start[8:9] == b"{"
    for signature, what in _NO_WEIGHTS.items():
        if start.startswith(signature) and not is_safetensors:
            raise ValueError(f"{path} is {what}.")
    # A damaged file makes the readers raise nearly anything: KeyError, EOFError, struct.error, …
    try:
        if is_safetensors or path.suffix == ".safetensors":
            return load_file(path)
        return _unpickle(path, is_zip=start.startswith(b"PK\x03\x04"))
    except Exception as error:
        raise ValueError(f"{path} {_what_is_wrong(path, str(error))}") from error


def _unpickle(path: Path, *, is_zip: bool) -> Any:
    """What `torch.load` reads of a file when it may read data only."""
    if is_zip:
        with zipfile.ZipFile(path) as archive:
            # torch does not look at the checksums, and may be told to write none: all are 0 then.
            if any(member.CRC for member in archive.infolist()) and archive.testzip():
                raise zipfile.BadZipFile("A checksum is wrong.")
    with torch.serialization.safe_globals(_PLAIN_DATA), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript: the error below says it
        # Mapped, a tensor cannot reach past the end of a damaged file.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)


def _what_is_wrong(path: Path, error: str) -> str:
    again = (
        "On a machine where you trust it, save the tensors alone, "
        '`torch.save({}.state_dict(), "weights.pth")`, or as safetensors, and load that file.'
    )
    if unsafe := re.search(r"GLOBAL (\S+)", error):
        what = f"holds more than tensors: `{unsafe[1]}` would be unpickled, which can run any code."
        return f"{what} {again.format('model')}"
    if "TorchScript" in error:
        what = "is a TorchScript archive: a program, not only weights."
        return f"{what} {again.format(f'torch.jit.load({path.name!r})')}"
    size = f"{path.stat().st_size:,} bytes"
    return f"is no weights file, cut short or damaged ({size}). Download or save it again."


def _find_state_dicts(content: Any) -> dict[str, dict[str, Tensor]]:
    """Every mapping of names to tensors in a checkpoint, but for the optimizer's."""
    found: dict[str, dict[str, Tensor]] = {}
    seen: set[int] = set()
    waiting: list[tuple[tuple[str, ...], Any]] = [((), content)]
    for keys, mapping in waiting:
        if id(mapping) in seen or not isinstance(mapping, Mapping) or len(keys) > _MOST_LEVELS:
            continue
        seen.add(id(mapping))
        named = {key: value for key, value in mapping.items() if isinstance(key, str)}
        if tensors := {key: value for key, value in named.items() if _is_weight(value)}:
            found[".".join(keys)] = tensors
        waiting += [((*keys, key), value) for key, value in named.items() if "optim" not in key]
    return found


def _is_weight(value: Any) -> bool:
    is_dense = isinstance(value, Tensor) and value.layout == torch.strided
    return is_dense and not value.is_meta and not value.is_quantized

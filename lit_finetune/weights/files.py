"""Read weights files of any format without running code in them."""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from lit_finetune._errors import nearest, some_of
from lit_finetune.checkpoints.sharded import gather_checkpoint, is_sharded_folder
from lit_finetune.files.diagnose import (
    FIRST_BYTES,
    SAVE_STATE_DICT,
    NoWeightsError,
    describe_content,
    explain_error,
    has_weights_signature,
    is_safetensors,
    refuse_archive,
    refuse_foreign_content,
    refuse_foreign_name,
    refuse_oversized_tensors,
    shard_names,
)
from lit_finetune.files.foreign_folders import folder_advice, list_files
from lit_finetune.files.placeholder_objects import (
    PLACEHOLDERS,
    Placeholder,
    is_imported_enum,
    unsupported_global,
)
from lit_finetune.files.terminal_text import printable
from lit_finetune.files.torch_files import load_torch_file, open_torch_file

_MAX_ENUMS = 16
_MAX_LEVELS = 3


def read_entries(path: str | Path) -> dict[str, dict[str, Tensor]]:
    """All state dicts in a weights file, by their dotted keys in it.

    If the file itself is a state dict, its key is "".

    Raises:
        FileNotFoundError: There is no such file; the message names the closest ones.
        ValueError: The file is damaged, holds no weights, or would have to run code.
    """
    path = Path(path).expanduser()
    _check_exists(path)
    content = _read_shards(path) if path.name.endswith(".index.json") else read_content(path)
    entries = _find_state_dicts(content)
    if not entries:
        kind = describe_content(content)
        raise ValueError(
            f"{printable(path)} has no tensors by name, but a {kind}. {SAVE_STATE_DICT}"
        )
    return entries


def read_content(path: str | Path, *, skip_data: bool = False) -> Any:
    """The whole content of a weights file, as plain data.

    Args:
        path: A file, or a folder of shards.
        skip_data: Whether to leave out the data of tensors in a file.
    """
    path = Path(path).expanduser()
    return gather_checkpoint(path) if path.is_dir() else _read(path, skip_data=skip_data)


def _check_exists(path: Path) -> None:
    if is_sharded_folder(path):
        return
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a weights file.{folder_advice(path)}")
    if path.is_symlink() and not path.exists():
        target = os.readlink(path)
        fetch = " Run `git annex get` on it." if "annex/objects" in target else " Copy it again."
        raise FileNotFoundError(f"{path} is a link to {target}, which is not there.{fetch}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"No weights file {path}: its folder does not exist.")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is a pipe or a device, not a weights file: copy it to a file.")
    if not path.exists():
        closest = nearest(path.name, (file.name for file in path.parent.iterdir()))
        hint = closest or list_files(path.parent)
        raise FileNotFoundError(f"No weights file {path.name!r} in {path.parent}.{hint}")


def _read_shards(index: Path) -> dict[str, Tensor]:
    """The tensors of all files in a Hugging Face index, from the index's folder."""
    tensors: dict[str, Tensor] = {}
    try:
        start, end = _first_and_last_bytes(index)
        if not start.lstrip().startswith((b"{", b"[")):
            refuse_foreign_content(start, end)
        for name in shard_names(index):
            shard = read_entries(index.with_name(name))
            if "" not in shard:
                entries = ", ".join(shard)
                raise NoWeightsError(f"names {name!r}, whose tensors are in entries: {entries}.")
            tensors.update(shard[""])
    except NoWeightsError as error:
        raise ValueError(f"{printable(index)} {error}") from error
    return tensors


def _read(path: Path, *, skip_data: bool) -> Any:
    start, end = _first_and_last_bytes(path)
    # On damaged files the readers raise almost any error: KeyError, EOFError, struct.error, …
    try:
        refuse_foreign_content(start, end)
        if not has_weights_signature(start):
            refuse_foreign_name(path)
        content = _load(path, start, skip_data=skip_data)
        for tensors in _find_state_dicts(content).values():
            refuse_oversized_tensors(tensors, path.stat().st_size)
    except Exception as error:
        raise ValueError(f"{printable(path)} {explain_error(path, error, start)}") from error
    return content


def _first_and_last_bytes(path: Path) -> tuple[bytes, bytes]:
    """The first and the last bytes of a file."""
    with open_torch_file(path) as file:
        start = file.read(FIRST_BYTES)
        file.seek(max(0, path.stat().st_size - FIRST_BYTES))
        return start, file.read(FIRST_BYTES)


def _load(path: Path, start: bytes, *, skip_data: bool) -> Any:
    """Load a file of plain data, in the format that its first bytes show."""
    if is_safetensors(start):
        return load_file(path, backend="pread")  # memory-mapped, a truncated file ends the process
    if start.startswith(b"PK\x03\x04"):
        refuse_archive(path)
    enums: list[tuple[type, str]] = []
    while True:
        try:
            return _load_with_placeholders([*PLACEHOLDERS, *enums], path, skip_data=skip_data)
        except UnpicklingError as error:
            name = unsupported_global(error)
            if not name or not is_imported_enum(name) or len(enums) >= _MAX_ENUMS:
                raise
            enums.append((Placeholder, name))


def _load_with_placeholders(names: list[Any], path: Path, *, skip_data: bool) -> Any:
    with torch.serialization.safe_globals(names), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript: the error below says it
        with open_torch_file(path) as file:
            return load_torch_file(file, skip_data=skip_data)


def _find_state_dicts(content: Any) -> dict[str, dict[str, Tensor]]:
    """Every mapping of names to tensors in a checkpoint, except those of optimizers."""
    found: dict[str, dict[str, Tensor]] = {}
    seen: set[int] = set()
    pending: list[tuple[tuple[str, ...], Any]] = [((), content)]
    for keys, mapping in pending:
        if id(mapping) in seen or not isinstance(mapping, Mapping) or len(keys) > _MAX_LEVELS:
            continue
        seen.add(id(mapping))
        by_name = {key: value for key, value in mapping.items() if isinstance(key, str)}
        values = {key: _unpack_quantised(value) for key, value in by_name.items()}
        if tensors := {key: value for key, value in values.items() if _is_weight(value)}:
            found[".".join(keys)] = tensors
        _refuse_sparse(values)
        pending += [((*keys, key), value) for key, value in by_name.items() if "optim" not in key]
    return found


def _refuse_sparse(values: Mapping[str, Any]) -> None:
    """Raise if tensors are sparse or without data: in the report they would be missing."""
    others = {
        name: "without data, on `meta`" if value.is_meta else str(value.layout).split(".")[-1]
        for name, value in values.items()
        if isinstance(value, Tensor) and not _is_weight(value)
    }
    is_empty = all(value.is_meta for value in values.values() if isinstance(value, Tensor))
    if others and not is_empty:
        shown = [f"{printable(name[:80])} ({how})" for name, how in others.items()]
        raise NoWeightsError(
            f"has tensors that are not stored as plain numbers, {len(others)}: {some_of(shown)}."
            " Where they were made, save the numbers: `{name: tensor.to_dense() for name, tensor in"
            " model.state_dict().items()}`."
        )


def _is_weight(value: Any) -> bool:
    is_dense = isinstance(value, Tensor) and value.layout == torch.strided
    return is_dense and not value.is_meta


def _unpack_quantised(value: Any) -> Any:
    """The quantised weight of a tuple with the bias, as torch saves it; other values unchanged."""
    is_packed = isinstance(value, tuple) and value and isinstance(value[0], Tensor)
    return value[0] if is_packed and value[0].is_quantized else value

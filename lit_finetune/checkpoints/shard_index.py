"""Read the index of a sharded checkpoint, a pickle, as plain data.

An index refers to a few classes and functions of torch, which are called to build its entries.
Only entries may be given attributes: otherwise a pickle could set those of the classes and
functions themselves.
"""

import os
import pickle
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from typing_extensions import override

from lit_finetune.files.index_paths import is_plain_name
from lit_finetune.files.pickle_check import PickleError, check_pickle
from lit_finetune.files.terminal_text import printable
from lit_finetune.files.torch_files import open_torch_file

INDEX = ".metadata"
"""The name of torch's index file."""
_PATHS = {"Path", "PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath"}
_ALLOWED_NAMES = {
    "pathlib": _PATHS,
    "pathlib._local": _PATHS,  # their module in Python 3.13
    "torch": {"Size"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.serialization": {"_get_layout"},
}
"""The names that an index may refer to, by module, besides dtypes."""
_ENTRY_TYPES = (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
    _StorageInfo,
)
"""The classes whose objects a pickle may give attributes."""


def read_index(folder: str | Path) -> Metadata:
    """The index of a folder of shards, read as plain data; it may name only files in that folder.

    Raises:
        ValueError: It would have to run code, is damaged, names files elsewhere, or declares more
            than the files hold.
    """
    path = Path(folder) / INDEX
    try:
        with open_torch_file(path) as file:
            check_pickle(file)
            file.seek(0)
            index = _IndexUnpickler(file).load()
        names = _validated_names(index)
    except OSError:
        raise
    except Exception as error:  # on damaged pickles the reader raises almost any error
        message = str(error) if isinstance(error, ValueError) else "It is damaged."
        if isinstance(error, PickleError):
            message = f"It {error}."
        raise ValueError(
            f"{printable(path)} is no index of a sharded checkpoint. {message}"
        ) from error
    for name in names:
        if not is_plain_name(name):
            raise ValueError(
                f"{printable(path)} names {name!r}, which is not a file next to it: the files of a"
                " sharded checkpoint are in one folder."
            )
    _refuse_inflated(index, path)
    return index


def _validated_names(index: Any) -> set[Any]:
    """The files that an index names.

    Raises:
        ValueError: The index has another form than torch's.
    """
    is_valid = isinstance(index, Metadata) and (
        all(
            isinstance(name, str) and _is_entry(entry)
            for name, entry in index.state_dict_metadata.items()
        )
        and all(
            isinstance(key, MetadataIndex) and _is_storage_info(info)
            for key, info in index.storage_data.items()
        )
    )
    if not is_valid:
        raise ValueError("It is damaged.")
    return {info.relative_path for info in index.storage_data.values()}


def _is_entry(entry: Any) -> bool:
    if isinstance(entry, BytesStorageMetadata):
        return True
    return (
        isinstance(entry, TensorStorageMetadata)
        and isinstance(entry.properties.dtype, torch.dtype)
        and all(type(side) is int and side >= 0 for side in entry.size)
    )


def _is_storage_info(info: Any) -> bool:
    """Whether an entry is a valid position in a file, without transforms such as compression."""
    return (
        isinstance(info, _StorageInfo)
        and all(type(number) is int and number >= 0 for number in (info.offset, info.length))
        and not getattr(info, "transform_descriptors", None)
    )


def _refuse_inflated(index: Metadata, path: Path) -> None:
    """Refuse to allocate tensors that are larger than the files of an index."""
    tensors = [
        entry
        for entry in index.state_dict_metadata.values()
        if isinstance(entry, TensorStorageMetadata)
    ]
    declared = sum(entry.size.numel() * entry.properties.dtype.itemsize for entry in tensors)
    names = {info.relative_path for info in index.storage_data.values()}
    files = [path.with_name(name) for name in names]
    available = sum(file.stat().st_size for file in files if file.is_file())
    if declared > available:
        raise ValueError(
            f"{printable(path)} declares {declared:,} bytes of tensors, and its files hold"
            f" {available:,}: the checkpoint is damaged, or not whole. Copy or download it again."
        )


_Unpickler: Any = pickle._Unpickler
"""The unpickler in Python, whose steps can be overridden; `pickle.Unpickler` is in C."""


class _IndexUnpickler(_Unpickler):  # type: ignore[misc]
    dispatch: ClassVar[dict[int, Any]] = {**_Unpickler.dispatch}

    @override
    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or name in _ALLOWED_NAMES.get(module, ()):
            return super().find_class(module, name)
        raise ValueError(
            f"The checkpoint's index refers to {printable(f'{module}.{name}')}, which it should"
            " not."
        )

    def load_build(self) -> None:
        entry, state = self.stack[-2:]
        uses_setstate = type(entry) is TensorProperties  # it has a `__setstate__` for tuples
        if type(entry) not in _ENTRY_TYPES or not isinstance(
            state, tuple if uses_setstate else dict
        ):
            raise ValueError("The checkpoint's index would change more than what it builds.")
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build


def has_index(folder: str | Path) -> bool:
    """Whether a folder has an index of shards."""
    return os.path.isfile(os.path.join(folder, INDEX))

"""Read the checkpoints of sharded runs without running code that they might hold.

A run under ModelParallelStrategy writes a file with the whole network, or, unless told otherwise, a
folder with the shards of each process. torch unpickles the index of such a folder, which could run
anything; here nothing but what an index consists of is let through.
"""

import io
import os
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from typing_extensions import override

from lit_finetune.checkpoint_reader import load_plain
from lit_finetune.plain_names import is_plain_name

_PLAIN_PART = "meta.pt"
_INDEX = ".metadata"
_WEIGHTS = "state_dict."
_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_IN_AN_INDEX = {
    "pathlib": {"Path", "PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath"},
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
"""The names that an index refers to, by module, besides the numbers' types."""


def plain_part(checkpoint: str | Path) -> dict[str, Any]:
    """What a checkpoint says besides the shards.

    Args:
        checkpoint: A file that holds the whole network, or a folder of shards.
    """
    path = Path(checkpoint)
    file = path / _PLAIN_PART if path.is_dir() else path
    content: dict[str, Any] = load_plain(file, mmap=True)
    return content


def is_of_shards(path: str | Path) -> bool:
    """Whether a path is a folder of shards that holds a network as `gather_checkpoint` reads it."""
    folder = Path(path)
    if not all((folder / name).is_file() for name in (_PLAIN_PART, _INDEX)):
        return False
    names = _Reader(folder).read_metadata().state_dict_metadata
    return any(name.startswith(_WEIGHTS) for name in names)


def gather_checkpoint(folder: str | Path) -> dict[str, Any]:
    """What a folder of shards holds, as a single file would, but without the optimizers' states.

    `torch.save(gather_checkpoint("last.ckpt"), "whole.ckpt")` makes a file for everything but to
    resume from.

    Raises:
        FileNotFoundError: The folder is not a whole checkpoint.
    """
    folder = Path(folder)
    for name in (_PLAIN_PART, _INDEX):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is no whole checkpoint: it has no file `{name}`.")
    reader = _Reader(folder)
    entries = reader.read_metadata().state_dict_metadata
    weights = {
        name.removeprefix(_WEIGHTS): torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in entries.items()
        if name.startswith(_WEIGHTS) and isinstance(entry, TensorStorageMetadata)
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that it reads in one process, as it should
        load({"state_dict": weights}, storage_reader=reader, no_dist=True)
    return {**plain_part(folder), "state_dict": weights}


def as_file(checkpoint: Any) -> Any:
    """A folder of shards as the file that it would be; anything else as it is."""
    if not isinstance(checkpoint, str | Path) or not Path(checkpoint).is_dir():
        return checkpoint
    file = io.BytesIO()
    torch.save(gather_checkpoint(checkpoint), file)
    file.seek(0)
    return file


def read_index(folder: str | Path) -> Metadata:
    """The index of a folder of shards, from data alone, of files in that folder alone.

    Raises:
        ValueError: It would have to run code, is damaged, or names another place.
    """
    path = Path(folder) / _INDEX
    try:
        with path.open("rb") as file:
            index = _IndexUnpickler(file).load()
        names = {place.relative_path for place in index.storage_data.values()}
    except OSError:
        raise
    except Exception as error:  # a damaged pickle makes its reader raise nearly anything
        told = str(error) if isinstance(error, ValueError) else "It is damaged."
        raise ValueError(f"{path} is no index of a sharded checkpoint. {told}") from error
    for name in names:
        if not is_plain_name(name):
            raise ValueError(
                f"{path} names {name!r}, which is not a file beside it: the files of a sharded"
                " checkpoint stand in one folder."
            )
    if not isinstance(index, Metadata):
        raise ValueError(f"{path} is no index of a sharded checkpoint.")
    return index


@contextmanager
def plain_data_only(checkpoint: str | Path) -> Iterator[None]:
    """Let torch read a folder of shards, whose index it unpickles, without running anything.

    Raises:
        ValueError: The index would have to run code, is damaged, or names another place.
    """
    if Path(checkpoint).is_dir() and (Path(checkpoint) / _INDEX).exists():
        read_index(checkpoint)
    before = os.environ.get(_FORCE)
    os.environ[_FORCE] = "1"  # what is no tensor torch would unpickle, whatever it is
    try:
        yield
    finally:
        os.environ.pop(_FORCE)
        if before is not None:
            os.environ[_FORCE] = before


class _Reader(FileSystemReader):
    @override
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        index = read_index(str(self.path))
        if index.storage_meta is None:
            index.storage_meta = StorageMeta()
        index.storage_meta.load_id = self.load_id
        return index


class _IndexUnpickler(pickle.Unpickler):
    @override
    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or name in _IN_AN_INDEX.get(module, ()):
            return super().find_class(module, name)
        raise ValueError(f"The checkpoint's index refers to {module}.{name}, which it should not.")

"""Read the checkpoints of sharded runs without running code in them.

A run under ModelParallelStrategy writes a folder with the shards of each process, or, with
`save_distributed_checkpoint=False`, a file with the full network. torch unpickles the index of a
folder, which could run any code; here only the types of an index are allowed.
"""

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.utils import _create_file_view
from typing_extensions import override

from lit_finetune.checkpoints.read import load_plain, refuse_damaged
from lit_finetune.checkpoints.shard_index import INDEX, has_index, read_index
from lit_finetune.files.terminal_text import printable
from lit_finetune.files.torch_files import check_torch_file

_META_FILE = "meta.pt"
_WEIGHTS_PREFIX = "state_dict."
_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def plain_part(checkpoint: str | Path, *, skip_data: bool = False) -> dict[str, Any]:
    """The plain part of a checkpoint: of a folder of shards, the content without the shards.

    Args:
        checkpoint: A file with the full network, or a folder of shards.
        skip_data: Whether to leave out the data of tensors.
    """
    path = Path(checkpoint)
    file = path / _META_FILE if path.is_dir() else path
    content: dict[str, Any] = load_plain(file, skip_data=skip_data)
    refuse_damaged(content, checkpoint)
    return content


def mmap_plain_part(checkpoint: str | Path) -> dict[str, Any]:
    """The plain part of a checkpoint; a file is memory-mapped, so that processes share its memory.

    The strategy memory-maps the file as well.
    """
    content = plain_part(checkpoint, skip_data=os.path.isfile(checkpoint))
    if os.path.isfile(checkpoint):
        content = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)
    return content


def is_sharded_folder(path: str | Path) -> bool:
    """Whether a path is a folder of shards with a network for `gather_checkpoint`."""
    folder = Path(path)
    if not all((folder / name).is_file() for name in (_META_FILE, INDEX)):
        return False
    names = _Reader(folder).read_metadata().state_dict_metadata
    return any(name.startswith(_WEIGHTS_PREFIX) for name in names)


def gather_checkpoint(folder: str | Path) -> dict[str, Any]:
    """The content of a folder of shards as of a single file, without the optimizers' states.

    `torch.save(gather_checkpoint("last.ckpt"), "whole.ckpt")` makes a file for every use except
    resuming.

    Raises:
        FileNotFoundError: The folder is not a complete checkpoint.
    """
    folder = Path(folder)
    for name in (_META_FILE, INDEX):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is no whole checkpoint: it has no file `{name}`.")
    reader = _Reader(folder)
    entries = reader.read_metadata().state_dict_metadata
    weights = {
        name.removeprefix(_WEIGHTS_PREFIX): torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in entries.items()
        if name.startswith(_WEIGHTS_PREFIX) and isinstance(entry, TensorStorageMetadata)
    }
    with plain_data_only(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that it reads in one process, as intended
        load({"state_dict": weights}, storage_reader=reader, no_dist=True)
    return {**plain_part(folder), "state_dict": weights}


def as_file(checkpoint: Any) -> Any:
    """A folder of shards as an open file; other values unchanged."""
    if not isinstance(checkpoint, str | Path) or not Path(checkpoint).is_dir():
        return checkpoint
    file = io.BytesIO()
    torch.save(gather_checkpoint(checkpoint), file)
    file.seek(0)
    return file


@contextmanager
def plain_data_only(checkpoint: str | Path) -> Iterator[None]:
    """Let torch read a folder of shards without running code, within a context.

    Raises:
        ValueError: The index or a shard would run code, is damaged, or names files elsewhere.
    """
    if has_index(checkpoint):
        read_index(checkpoint)
    own_methods = {name: vars(_Reader)[name] for name in ("read_metadata", "_slice_file")}
    original_methods = {name: vars(FileSystemReader)[name] for name in own_methods}
    before = os.environ.get(_FORCE)
    os.environ[_FORCE] = "1"  # torch would unpickle everything that is no tensor
    for name, method in own_methods.items():  # torch makes its own readers
        setattr(FileSystemReader, name, method)
    try:
        yield
    except CheckpointException as error:  # it is not an Exception
        raise ValueError(
            f"The shards of {printable(checkpoint)} hold more than plain data, or are damaged, so"
            " the checkpoint was not opened. Copy or download it again."
        ) from error
    finally:
        for name, method in original_methods.items():
            setattr(FileSystemReader, name, method)
        os.environ.pop(_FORCE)
        if before is not None:
            os.environ[_FORCE] = before


class _Reader(FileSystemReader):
    @override
    def _slice_file(self, file: IO[bytes], sinfo: Any) -> IO[bytes]:
        part = _create_file_view(cast(Any, file), sinfo.offset, sinfo.length)
        check_torch_file(part)
        return cast(IO[bytes], part)

    @override
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        index = read_index(str(self.path))
        if index.storage_meta is None:
            index.storage_meta = StorageMeta()
        index.storage_meta.load_id = self.load_id
        return index

"""Read the checkpoints of sharded runs without running code that they might hold.

A run under ModelParallelStrategy writes a file with the whole network, or, unless told otherwise, a
folder with the shards of each process. torch unpickles the index of such a folder, which could run
anything; here nothing but what an index consists of is let through.
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

_PLAIN_PART = "meta.pt"
_WEIGHTS = "state_dict."
_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def plain_part(checkpoint: str | Path, *, skip_data: bool = False) -> dict[str, Any]:
    """What a checkpoint says besides the shards.

    Args:
        checkpoint: A file that holds the whole network, or a folder of shards.
        skip_data: Whether tensors may be without their data.
    """
    path = Path(checkpoint)
    file = path / _PLAIN_PART if path.is_dir() else path
    content: dict[str, Any] = load_plain(file, skip_data=skip_data)
    refuse_damaged(content, checkpoint)
    return content


def shared_part(checkpoint: str | Path) -> dict[str, Any]:
    """The same for all processes of a node, which share the memory that a whole network takes.

    The strategy that asks for it will map the file as well.
    """
    content = plain_part(checkpoint, skip_data=os.path.isfile(checkpoint))
    if os.path.isfile(checkpoint):
        content = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)
    return content


def is_sharded_folder(path: str | Path) -> bool:
    """Whether a path is a folder of shards that holds a network as `gather_checkpoint` reads it."""
    folder = Path(path)
    if not all((folder / name).is_file() for name in (_PLAIN_PART, INDEX)):
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
    for name in (_PLAIN_PART, INDEX):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is no whole checkpoint: it has no file `{name}`.")
    reader = _Reader(folder)
    entries = reader.read_metadata().state_dict_metadata
    weights = {
        name.removeprefix(_WEIGHTS): torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in entries.items()
        if name.startswith(_WEIGHTS) and isinstance(entry, TensorStorageMetadata)
    }
    with plain_data_only(folder), warnings.catch_warnings():
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


@contextmanager
def plain_data_only(checkpoint: str | Path) -> Iterator[None]:
    """Let torch read a folder of shards, whose index it unpickles, without running anything.

    Raises:
        ValueError: The index or a shard would have to run code, is damaged, or names another place.
    """
    if has_index(checkpoint):
        read_index(checkpoint)
    ours = {name: vars(_Reader)[name] for name in ("read_metadata", "_slice_file")}
    torchs = {name: vars(FileSystemReader)[name] for name in ours}
    before = os.environ.get(_FORCE)
    os.environ[_FORCE] = "1"  # what is no tensor torch would unpickle, whatever it is
    for name, method in ours.items():  # torch makes readers of its own, and reads the index again
        setattr(FileSystemReader, name, method)
    try:
        yield
    except CheckpointException as error:  # of all processes together, and no Exception
        raise ValueError(
            f"The shards of {printable(checkpoint)} hold more than plain data, or are damaged, so"
            " the checkpoint was not opened. Copy or download it again."
        ) from error
    finally:
        for name, method in torchs.items():
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

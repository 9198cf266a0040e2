"""Where a checkpoint comes from: a file, an address, a folder of shards, an open file."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]  # has no types; torch brings it

from lit_finetune._errors import nearest
from lit_finetune.checkpoints.removal import is_local
from lit_finetune.checkpoints.sharded import as_file
from lit_finetune.files.torch_files import open_torch_file


def local_or_fetched(checkpoint: Any) -> Any:
    """A checkpoint as a path of a file, or as an open file with what was fetched or gathered.

    Args:
        checkpoint: A path, an address (`https://…`, `s3://…`), a folder of shards, an open file.

    Raises:
        FileNotFoundError: There is no such file; the message names the nearest ones.
        ConnectionError: The address cannot be read.
    """
    if not isinstance(checkpoint, str | Path):
        return checkpoint
    if not is_local(str(checkpoint)):
        return _fetched(str(checkpoint))
    path = Path(checkpoint).expanduser()
    if path.is_dir():
        return as_file(path)
    if not path.exists():
        names = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        raise FileNotFoundError(f"There is no checkpoint {path}.{nearest(path.name, names)}")
    return path


@contextmanager
def opened(checkpoint: Any) -> Iterator[Any]:
    """A checkpoint as an open file; one of the user's is left open.

    Raises:
        OSError: There is no such file, or it cannot be read.
    """
    source = local_or_fetched(checkpoint)
    if not isinstance(source, Path):
        yield source
        return
    with open_torch_file(source) as file:  # once: another one could come in its place
        yield file


def _fetched(address: str) -> io.BytesIO:
    """A file from elsewhere; torch's own way would keep it among published weights, by its name."""
    try:
        with fsspec.open(address, "rb") as file:
            return io.BytesIO(file.read())
    except Exception as error:  # each file system and each protocol has its own
        raise ConnectionError(f"The checkpoint {address} cannot be read: {error!r}") from error

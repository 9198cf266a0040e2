"""Open a checkpoint from a file, a URL, a folder of shards, or an open file."""

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


def resolve_checkpoint(checkpoint: Any) -> Any:
    """A checkpoint as a path of a file, or as an open file with the fetched or gathered content.

    Args:
        checkpoint: A path, a URL (`https://…`, `s3://…`), a folder of shards, or an open file.

    Raises:
        FileNotFoundError: There is no such file; the message names the closest ones.
        ConnectionError: The URL cannot be read.
    """
    if not isinstance(checkpoint, str | Path):
        return checkpoint
    if not is_local(str(checkpoint)):
        return _fetch(str(checkpoint))
    path = Path(checkpoint).expanduser()
    if path.is_dir():
        return as_file(path)
    if not path.exists():
        names = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        raise FileNotFoundError(f"There is no checkpoint {path}.{nearest(path.name, names)}")
    return path


@contextmanager
def open_checkpoint(checkpoint: Any) -> Iterator[Any]:
    """A checkpoint as an open file; a file that was open before stays open.

    Raises:
        OSError: There is no such file, or it cannot be read.
    """
    source = resolve_checkpoint(checkpoint)
    if not isinstance(source, Path):
        yield source
        return
    with open_torch_file(source) as file:  # opened once: it could be replaced in between
        yield file


def _fetch(address: str) -> io.BytesIO:
    """Fetch a URL into memory; torch's own function would cache it by its name only."""
    try:
        with fsspec.open(address, "rb") as file:
            return io.BytesIO(file.read())
    except Exception as error:  # each file system and protocol raises its own
        raise ConnectionError(f"The checkpoint {address} cannot be read: {error!r}") from error

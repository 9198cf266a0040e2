"""Read files of `torch.save` from anybody: opened once, checked first, never mapped into memory.

Truncating a mapped file while it is read kills the process by a signal.
"""

import io
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from lit_finetune.files.pickle_check import check_pickle

_LEGACY_PICKLES = 5
"""The magic number, the protocol, the system, the content and the keys of the storages."""


def open_torch_file(path: str | Path) -> BinaryIO:
    """Open a regular file for reading, without blocking.

    Raises:
        OSError: The file does not exist, or is a folder, a pipe or a device.
    """
    # O_NONBLOCK: opening a pipe would block. Windows has no such flag.
    file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(f"{path} is no ordinary file.")
    return os.fdopen(file, "rb")


def load_torch_file(file: Any, *, map_location: Any = "cpu", skip_data: bool = False) -> Any:
    """Load an open file of `torch.save` that holds plain data.

    Args:
        file: Open, and at its start.
        map_location: As for `torch.load`.
        skip_data: Load tensors without their data, on the device `meta`, where that is possible.

    Raises:
        PickleError: The pickle would build something too deep or too large.
        Exception: The file holds more than plain data, or is damaged; any kind of exception.
    """
    check_torch_file(file)
    if skip_data:
        with suppress(NotImplementedError, RuntimeError):  # some kinds of tensors need their data
            return torch.load(file, map_location="meta", weights_only=True)
        file.seek(0)
    return torch.load(file, map_location=map_location, weights_only=True)


def check_torch_file(file: Any) -> None:
    """Check the pickles of an open file of `torch.save`, and return to the position before.

    Raises:
        PickleError: A pickle would build something too deep or too large.
        Exception: The file is damaged; any kind of exception.
    """
    start = file.tell()
    if file.read(4) == b"PK\x03\x04":
        file.seek(start)
        # Torch's own reader: another one could find another pickle.
        reader = torch._C.PyTorchFileReader(file)
        check_pickle(io.BytesIO(reader.get_record("data.pkl")))
    else:
        file.seek(start)
        for _ in range(_LEGACY_PICKLES):
            check_pickle(file)
    file.seek(start)


def named_tensors(content: Any) -> Iterator[tuple[str, Tensor]]:
    """All tensors in plain data, with their dotted keys; no container is visited twice.

    >>> [name for name, _ in named_tensors({"a": [torch.ones(1)], "b": {"c": torch.ones(2)}})]
    ['a.0', 'b.c']
    """
    queue, seen = [("", content)], set[int]()
    for key, each in queue:  # the queue grows
        if isinstance(each, Tensor):
            yield key, each
        elif id(each) not in seen:
            seen.add(id(each))
            queue += [(f"{key}.{name}".strip("."), inner) for name, inner in _items(each)]


def _items(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, list | tuple):
        yield from enumerate(value)

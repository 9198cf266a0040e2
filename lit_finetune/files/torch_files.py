"""Read a file of `torch.save` that somebody else has made: opened once, judged first, never mapped.

A mapped file that is cut short while it is read ends the process by a signal.
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
"""The number, the protocol, the system, the content and the keys of its storages."""


def open_torch_file(path: str | Path) -> BinaryIO:
    """Open a file to be read; nothing is waited for.

    Raises:
        OSError: There is no such file, or it is a folder, a pipe or a device.
    """
    # A pipe would be waited for, and Windows has no such flag.
    file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(f"{path} is no ordinary file.")
    return os.fdopen(file, "rb")


def load_torch_file(file: Any, *, map_location: Any = "cpu", skip_data: bool = False) -> Any:
    """What an open file of `torch.save` holds, if that is plain data.

    Args:
        file: Open, and at its start.
        map_location: As for `torch.load`.
        skip_data: Whether tensors may be without their data, on the device `meta`.

    Raises:
        PickleError: It would build something too deep or too large.
        Exception: It holds more than plain data, or is damaged; of any kind.
    """
    check_torch_file(file)
    if skip_data:
        with suppress(NotImplementedError, RuntimeError):  # tensors of rare kinds need theirs
            return torch.load(file, map_location="meta", weights_only=True)
        file.seek(0)
    return torch.load(file, map_location=map_location, weights_only=True)


def check_torch_file(file: Any) -> None:
    """Look through the pickles of an open file of `torch.save`, and stand at its start again.

    Raises:
        PickleError: They would build something too deep or too large.
        Exception: The file is damaged; of any kind.
    """
    start = file.tell()
    if file.read(4) == b"PK\x03\x04":
        file.seek(start)
        reader = torch._C.PyTorchFileReader(file)  # torch's own: another could read another pickle
        check_pickle(io.BytesIO(reader.get_record("data.pkl")))
    else:
        file.seek(start)
        for _ in range(_LEGACY_PICKLES):
            check_pickle(file)
    file.seek(start)


def tensors_in(content: Any) -> Iterator[tuple[str, Tensor]]:
    """All tensors in plain data, each once, by the keys that lead there.

    >>> [name for name, _ in tensors_in({"a": [torch.ones(1)], "b": {"c": torch.ones(2)}})]
    ['a.0', 'b.c']
    """
    waiting, seen = [("", content)], set[int]()
    for place, each in waiting:  # it grows
        if isinstance(each, Tensor):
            yield place, each
        elif id(each) not in seen:
            seen.add(id(each))
            waiting += [(f"{place}.{key}".strip("."), inner) for key, inner in _items(each)]


def _items(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, list | tuple):
        yield from enumerate(value)

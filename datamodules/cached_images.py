"""Pictures that were made ready once: as they lie in memory or in files."""

import logging
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_finetune.files.checksums import checksum, open_regular, read_at, write_at

Pixels = NDArray[np.uint8]
MISSING = -1

logger = logging.getLogger(__name__)  # workers tell as well, and other processes than the first


def as_tensor(pixels: Pixels) -> Tensor:
    """Pixels (H, W, C) as a tensor (C, H, W)."""
    if not pixels.flags.writeable:  # torch warns of what it cannot protect
        pixels = pixels.copy()
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


class Segment(Protocol):
    """Bytes of many pictures, one after the other."""

    def read(self, start: int, count: int, known: int) -> Pixels | None:
        """Bytes from a place on; None where they do not have the checksum that is known."""

    def put_back(self, start: int, pixels: Pixels, known: int) -> None:
        """Write bytes that were not found as they were, if these are they."""


class MemorySegment:
    """Bytes in memory; torch shares them with workers instead of sending them."""

    def __init__(self, pictures: Sequence[Pixels]) -> None:
        self._tensor = torch.empty(sum(p.size for p in pictures), dtype=torch.uint8)
        np.concatenate([p.reshape(-1) for p in pictures], out=self._tensor.numpy())

    def read(self, start: int, count: int, known: int) -> Pixels | None:
        """Bytes from a place on."""
        return self._tensor.numpy()[start : start + count]

    def put_back(self, start: int, pixels: Pixels, known: int) -> None:
        """Nothing: they are there."""


class FileSegment:
    """Bytes in a file, which is opened when they are first read.

    They are never mapped into memory: a mapped file that is cut short ends the process.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None
        self._is_told = False

    def __del__(self) -> None:
        if vars(self).get("_file") is not None:
            os.close(vars(self)["_file"])

    def read(self, start: int, count: int, known: int) -> Pixels | None:
        """Bytes from a place on; None where they do not have the checksum that is known."""
        pixels = np.empty(count, np.uint8)
        try:
            self._file = open_regular(self.path) if self._file is None else self._file
        except FileNotFoundError:  # another run found its pictures changed, and removed it
            return None
        except OSError as error:
            self._tell(f"cannot be read ({error})")
            return None
        is_there = read_at(self._file, start, [pixels.data])
        if is_there and checksum([pixels.data]) == known:
            return pixels
        self._tell("does not hold what was written: it was changed, cut short or damaged")
        return None

    def put_back(self, start: int, pixels: Pixels, known: int) -> None:
        """Write bytes that were not found as they were, if these are they and the file may be."""
        content = np.ascontiguousarray(pixels).reshape(-1).data
        if checksum([content]) != known:
            return
        with suppress(OSError):
            file = open_regular(self.path, writable=True)
            try:
                write_at(file, start, [content])
            finally:
                os.close(file)

    def _tell(self, problem: str) -> None:
        if not self._is_told:
            logger.warning("%s %s. Pictures are made ready anew.", self.path, problem)
        self._is_told = True

    def __getstate__(self) -> dict[str, Any]:
        """Without the file: another process opens it itself."""
        return {"path": self.path, "_file": None, "_is_told": self._is_told}


@dataclass(frozen=True, slots=True)
class CachedImages:
    """Where the pixels of each picture are.

    Args:
        segments: Where they lie.
        table: Of each picture the segment (or `MISSING`), where in it it begins, its height, width
            and channels, and its checksum.
    """

    segments: Sequence[Segment]
    table: NDArray[np.int64]

    def get(self, index: int) -> Pixels | None:
        """One picture (H, W, C), to be read only; None where it is not kept as it was."""
        segment, start, *shape, known = self.table[index].tolist()
        if segment == MISSING:
            return None
        pixels = self.segments[segment].read(start, math.prod(shape), known)
        return None if pixels is None else pixels.reshape(shape)

    def put_back(self, index: int, pixels: Pixels) -> None:
        """Repair a picture that was kept, and is not as it was."""
        segment, start, *shape, known = self.table[index].tolist()
        if segment != MISSING and list(pixels.shape) == shape:
            self.segments[segment].put_back(start, pixels, known)


@dataclass(frozen=True, slots=True)
class CachedTensor:
    """Pictures of one size as a single tensor (N, C, H, W), on the device that trains if it fits.

    Workers get it shared, not copied.
    """

    pictures: Tensor

    def get(self, index: int) -> Pixels | None:
        """One picture (H, W, C)."""
        pixels: Pixels = self.pictures[index].permute(1, 2, 0).cpu().numpy()
        return pixels

    def batch(self, indices: Tensor) -> Tensor:
        """Some pictures (n, C, H, W)."""
        return self.pictures.index_select(0, indices.to(self.pictures.device, non_blocking=True))

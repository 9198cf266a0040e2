"""Cached images: their pixels in memory or in files."""

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

logger = logging.getLogger(__name__)  # in workers and in all processes


def as_tensor(pixels: Pixels) -> Tensor:
    """Pixels (H, W, C) as a tensor (C, H, W)."""
    if not pixels.flags.writeable:  # torch would warn
        pixels = pixels.copy()
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


class Segment(Protocol):
    """The bytes of many images, one after the other."""

    def read(self, start: int, count: int, expected: int) -> Pixels | None:
        """Read bytes from an offset; None if they do not have the expected checksum."""

    def repair(self, start: int, pixels: Pixels, expected: int) -> None:
        """Write bytes again that were damaged, if these have the expected checksum."""


class MemorySegment:
    """Bytes in memory, which torch shares with workers without a copy."""

    def __init__(self, images: Sequence[Pixels]) -> None:
        self._tensor = torch.empty(sum(each.size for each in images), dtype=torch.uint8)
        np.concatenate([each.reshape(-1) for each in images], out=self._tensor.numpy())

    def read(self, start: int, count: int, expected: int) -> Pixels | None:
        """Read bytes from an offset."""
        return self._tensor.numpy()[start : start + count]

    def repair(self, start: int, pixels: Pixels, expected: int) -> None:
        """Do nothing: bytes in memory are never damaged."""


class FileSegment:
    """Bytes in a file, which is opened at the first read.

    It is never mapped into memory: truncating a mapped file kills the process.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None
        self._has_warned = False

    def __del__(self) -> None:
        if vars(self).get("_file") is not None:
            os.close(vars(self)["_file"])

    def read(self, start: int, count: int, expected: int) -> Pixels | None:
        """Read bytes from an offset; None if they do not have the expected checksum."""
        pixels = np.empty(count, np.uint8)
        try:
            self._file = open_regular(self.path) if self._file is None else self._file
        except FileNotFoundError:  # another run removed it, because its images have changed
            return None
        except OSError as error:
            self._warn_once(f"cannot be read ({error})")
            return None
        is_complete = read_at(self._file, start, [pixels.data])
        if is_complete and checksum([pixels.data]) == expected:
            return pixels
        self._warn_once("does not hold what was written: it was changed, cut short or damaged")
        return None

    def repair(self, start: int, pixels: Pixels, expected: int) -> None:
        """Write damaged bytes again, if they have the checksum and the file is writable."""
        content = np.ascontiguousarray(pixels).reshape(-1).data
        if checksum([content]) != expected:
            return
        with suppress(OSError):
            file = open_regular(self.path, writable=True)
            try:
                write_at(file, start, [content])
            finally:
                os.close(file)

    def _warn_once(self, problem: str) -> None:
        if not self._has_warned:
            logger.warning("%s %s. Pictures are read and resized again.", self.path, problem)
        self._has_warned = True

    def __getstate__(self) -> dict[str, Any]:
        """The state without the open file, which another process opens again."""
        return {"path": self.path, "_file": None, "_has_warned": self._has_warned}


@dataclass(frozen=True, slots=True)
class CachedImages:
    """Cached images of any size, in segments.

    Args:
        segments: The segments that contain the pixels.
        table: For each image (N, 6): the number of its segment (or `MISSING`), its offset in it,
            height, width, channels and checksum.
    """

    segments: Sequence[Segment]
    table: NDArray[np.int64]

    def get(self, index: int) -> Pixels | None:
        """One image (H, W, C), read-only; None if it is missing or damaged."""
        segment, start, *shape, expected = self.table[index].tolist()
        if segment == MISSING:
            return None
        pixels = self.segments[segment].read(start, math.prod(shape), expected)
        return None if pixels is None else pixels.reshape(shape)

    def repair(self, index: int, pixels: Pixels) -> None:
        """Write an image again that was found damaged."""
        segment, start, *shape, expected = self.table[index].tolist()
        if segment != MISSING and list(pixels.shape) == shape:
            self.segments[segment].repair(start, pixels, expected)


@dataclass(frozen=True, slots=True)
class CachedTensor:
    """Images of one size as one tensor (N, C, H, W), on the device that trains if it fits.

    Workers share it without a copy.
    """

    images: Tensor

    def get(self, index: int) -> Pixels | None:
        """One image (H, W, C)."""
        pixels: Pixels = self.images[index].permute(1, 2, 0).cpu().numpy()
        return pixels

    def batch(self, indices: Tensor) -> Tensor:
        """The images with these indices (n, C, H, W)."""
        return self.images.index_select(0, indices.to(self.images.device, non_blocking=True))

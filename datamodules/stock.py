"""Pictures that were made ready once: as they lie in memory or in files."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Pixels = NDArray[np.uint8]
MISSING = -1


def as_tensor(pixels: Pixels) -> Tensor:
    """Pixels (H, W, C) as a tensor (C, H, W)."""
    if not pixels.flags.writeable:  # torch warns of what it cannot protect
        pixels = pixels.copy()
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


class Segment(Protocol):
    """Bytes of many pictures, one after the other."""

    def pixels(self) -> Pixels:
        """All of the bytes."""


class MemorySegment:
    """Bytes in memory; torch shares them with workers instead of sending them."""

    def __init__(self, pictures: Sequence[Pixels]) -> None:
        self._tensor = torch.empty(sum(p.size for p in pictures), dtype=torch.uint8)
        np.concatenate([p.reshape(-1) for p in pictures], out=self._tensor.numpy())

    def pixels(self) -> Pixels:
        """All of the bytes."""
        return self._tensor.numpy()


@dataclass
class FileSegment:
    """Bytes in a file, mapped into memory when they are first read; shared by all processes."""

    path: Path
    _mapped: Pixels | None = field(default=None, repr=False)

    def pixels(self) -> Pixels:
        """All of the bytes."""
        if self._mapped is None:
            # Not "r": torch warns of memory that it could write to and must not. This it may, and
            # the file would stay as it is.
            self._mapped = np.memmap(self.path, dtype=np.uint8, mode="c")
        return self._mapped

    def __getstate__(self) -> dict[str, Any]:
        """Without the bytes: another process maps the file itself."""
        return {"path": self.path, "_mapped": None}


@dataclass(frozen=True, slots=True)
class Stock:
    """Where the pixels of each picture are.

    Args:
        segments: Where they lie.
        table: Of each picture the segment (or `MISSING`), where in it it begins, and its height,
            width and channels.
    """

    segments: Sequence[Segment]
    table: NDArray[np.int64]

    def get(self, index: int) -> Pixels | None:
        """One picture (H, W, C), to be read only; None where it is not kept."""
        segment, start, *shape = self.table[index].tolist()
        if segment == MISSING:
            return None
        try:
            pixels = self.segments[segment].pixels()
        except OSError:  # another run found its pictures changed, and removed the file
            return None
        return pixels[start : start + shape[0] * shape[1] * shape[2]].reshape(shape)


@dataclass(frozen=True, slots=True)
class TensorStock:
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

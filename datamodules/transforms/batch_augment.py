"""Augmentation of whole batches, on whichever device they are.

What happens to a picture follows from its own draws, whatever else is in the batch.
"""

from abc import abstractmethod
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2 import functional
from typing_extensions import override

Draws = NDArray[np.float64]


class BatchAugmentation(nn.Module):
    """Pictures of one size, moved at random."""

    num_draws: int
    """How many random numbers each picture takes."""

    @abstractmethod
    def move(self, pictures: Tensor, draws: Draws) -> Tensor:
        """Move pictures (N, C, H, W) of 8 bits by numbers (N, num_draws) from 0 to below 1.

        It may do so in place.
        """

    @override
    def forward(self, picture: Image.Image) -> Image.Image:
        """Move one picture by what torch draws."""
        draws = torch.rand(1, self.num_draws, dtype=torch.float64).numpy()
        moved = self.move(functional.pil_to_tensor(picture)[None], draws)
        return functional.to_pil_image(moved[0])


class RandomTranslate(BatchAugmentation):
    """Shift by up to `most` pixels down and to the right, or up and to the left; zeros come in."""

    num_draws = 2

    def __init__(self, most: tuple[int, int]) -> None:
        super().__init__()
        self.most = most

    @override
    def move(self, pictures: Tensor, draws: Draws) -> Tensor:
        (down, right), (height, width) = self.most, pictures.shape[-2:]
        tops, lefts = (draws * (2 * down + 1, 2 * right + 1)).astype(np.int64).T
        # A shifted picture is one stretch of memory, but for the edges over which pixels of other
        # rows came in. Stretches are copied many times faster than rows or pixels.
        size = pictures[0].numel()
        margin = down * width + right
        flat = F.pad(pictures.reshape(-1), (margin, margin))
        starts = np.arange(len(pictures)) * size + tops * width + lefts
        shifted = stretches(flat, starts, size).view(pictures.shape)
        rows, columns = is_inside(down, height)[tops], is_inside(right, width)[lefts]
        mask = torch.from_numpy(rows[:, None, :, None] & columns[:, None, None, :])
        shifted &= mask.to(pictures.device, non_blocking=True)
        return shifted

    @override
    def extra_repr(self) -> str:
        return f"most={self.most}"


def stretches(flat: Tensor, starts: NDArray[np.int64], size: int) -> Tensor:
    """As many bytes from each of these places on, as rows."""
    windows = flat.as_strided((len(flat) - size + 1, size), (1, 1))
    if flat.device.type == "cpu":  # where torch would copy byte by byte, and NumPy does not
        return torch.from_numpy(windows.numpy()[starts])
    return windows[torch.from_numpy(starts).to(flat.device, non_blocking=True)]


@lru_cache
def is_inside(most: int, length: int) -> NDArray[np.uint8]:
    """For each shift from `-most` to `most`, 255 for rows that are on the picture, 0 for others."""
    places = np.arange(-most, most + 1)[:, None] + np.arange(length)
    return ((places >= 0) & (places < length)).astype(np.uint8) * np.uint8(255)


class RandomHorizontalFlip(BatchAugmentation):
    """Every other picture as its mirror image."""

    num_draws = 1

    @override
    def move(self, pictures: Tensor, draws: Draws) -> Tensor:
        chosen = np.flatnonzero(draws[:, 0] < 0.5)
        if pictures.device.type == "cpu":  # as above
            pixels = pictures.numpy()
            pixels[chosen] = torch.from_numpy(pixels[chosen]).flip(-1).numpy()
        else:
            indices = torch.from_numpy(chosen).to(pictures.device, non_blocking=True)
            pictures[indices] = pictures[indices].flip(-1)
        return pictures


class RandomAffine(BatchAugmentation):
    """A small turn about the centre, zoom and shift; black comes in.

    Args:
        degrees: The largest turn, to either side.
        translate: The largest shift, as a share of height and width.
        zoom: The largest change of size.
    """

    num_draws = 4

    def __init__(self, degrees: float, *, translate: float, zoom: float) -> None:
        super().__init__()
        self.degrees, self.translate, self.zoom = degrees, translate, zoom

    @override
    def move(self, pictures: Tensor, draws: Draws) -> Tensor:
        size = torch.tensor(pictures.shape[:-3:-1])  # width, height
        signed = torch.from_numpy(draws * 2 - 1)
        turns = torch.deg2rad(signed[:, 0] * self.degrees)
        shifts = (signed[:, 1:3] * self.translate * size).round()
        scales = 1 + signed[:, 3] * self.zoom
        return warp(pictures, turns, shifts=shifts, scales=scales)


def warp(pictures: Tensor, turns: Tensor, *, shifts: Tensor, scales: Tensor) -> Tensor:
    """Turn, zoom and shift each picture (N, C, H, W) by its own numbers.

    Args:
        pictures: Of 8 bits.
        turns: Clockwise, in radians.
        shifts: To the right and down, in pixels.
        scales: Above 1 to enlarge.
    """
    height, width = pictures.shape[-2:]
    # Where each pixel comes from: multiplications and sums alone, in the same order for each
    # picture, since a matrix product might round otherwise in a batch of another size.
    cosines, sines, rights, downs = (
        number.float().to(pictures.device, non_blocking=True)[:, None, None]
        for number in (turns.cos() / scales, turns.sin() / scales, *shifts.unbind(1))
    )
    x = torch.arange(width, device=pictures.device) + (1 - width) / 2 - rights
    y = torch.arange(height, device=pictures.device)[:, None] + (1 - height) / 2 - downs
    columns = (cosines * x + sines * y) * (2 / width)
    rows = (cosines * y - sines * x) * (2 / height)
    grid = torch.stack([columns, rows], dim=-1)
    moved = F.grid_sample(pictures.float(), grid, mode="bilinear", align_corners=False)
    return moved.round_().to(torch.uint8)

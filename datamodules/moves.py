"""Augmentation of whole batches, on whichever device they are.

What happens to a picture follows from its own draws, whatever else is in the batch.
"""

from abc import abstractmethod

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2 import functional
from typing_extensions import override


class Move(nn.Module):
    """Pictures of one size, moved at random."""

    num_draws: int
    """How many random numbers each picture takes."""

    @abstractmethod
    def move(self, pictures: Tensor, draws: Tensor) -> Tensor:
        """Move pictures (N, C, H, W) of 8 bits by numbers (N, num_draws) from 0 to below 1."""

    @override
    def forward(self, picture: Image.Image) -> Image.Image:
        """Move one picture by what torch draws."""
        draws = torch.rand(1, self.num_draws, dtype=torch.float64)
        moved = self.move(functional.pil_to_tensor(picture)[None], draws)
        return functional.to_pil_image(moved[0])


class Shift(Move):
    """Shift by up to `most` pixels down and to the right, or up and to the left; zeros come in."""

    num_draws = 2

    def __init__(self, most: tuple[int, int]) -> None:
        super().__init__()
        self.most = most

    @override
    def move(self, pictures: Tensor, draws: Tensor) -> Tensor:
        device, (down, right), (height, width) = pictures.device, self.most, pictures.shape[-2:]
        places = torch.tensor([2 * down + 1, 2 * right + 1])
        tops, lefts = (draws * places).long().to(device, non_blocking=True).unbind(1)
        padded = F.pad(pictures, (right, right, down, down))
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)
        return windows[torch.arange(len(pictures), device=device), :, tops, lefts]


class Mirror(Move):
    """Every other picture as its mirror image."""

    num_draws = 1

    @override
    def move(self, pictures: Tensor, draws: Tensor) -> Tensor:
        chosen = (draws[:, 0] < 0.5).nonzero()[:, 0].to(pictures.device, non_blocking=True)
        return pictures.index_copy(0, chosen, pictures[chosen].flip(-1))


class TurnShiftZoom(Move):
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
    def move(self, pictures: Tensor, draws: Tensor) -> Tensor:
        size = torch.tensor(pictures.shape[:-3:-1])  # width, height
        signed = draws * 2 - 1
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

"""Augmentation of whole batches, on any device.

The result for an image depends only on its own random numbers, not on the rest of the batch.
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

RandomNumbers = NDArray[np.float64]


class BatchAugmentation(nn.Module):
    """A random transform of images of one size."""

    num_draws: int
    """The number of random numbers that each image needs."""

    @abstractmethod
    def augment(self, images: Tensor, draws: RandomNumbers) -> Tensor:
        """Transform images (N, C, H, W) of 8 bits, perhaps in place.

        Args:
            images: The images.
            draws: Random numbers (N, num_draws) from 0 to below 1.
        """

    @override
    def forward(self, image: Image.Image) -> Image.Image:
        """Transform one image by random numbers from torch's global generator."""
        draws = torch.rand(1, self.num_draws, dtype=torch.float64).numpy()
        augmented = self.augment(functional.pil_to_tensor(image)[None], draws)
        return functional.to_pil_image(augmented[0])


class RandomTranslate(BatchAugmentation):
    """Shift by up to `max_shift` pixels in both directions; the border is filled with zeros.

    Args:
        max_shift: The largest vertical and the largest horizontal shift.
    """

    num_draws = 2

    def __init__(self, max_shift: tuple[int, int]) -> None:
        super().__init__()
        self.max_shift = max_shift

    @override
    def augment(self, images: Tensor, draws: RandomNumbers) -> Tensor:
        (down, right), (height, width) = self.max_shift, images.shape[-2:]
        tops, lefts = (draws * (2 * down + 1, 2 * right + 1)).astype(np.int64).T
        # A shifted image is one slice of memory, except at its edges, where pixels of other rows
        # come in. Copying slices is many times faster than copying rows or pixels.
        size = images[0].numel()
        margin = down * width + right
        flat = F.pad(images.reshape(-1), (margin, margin))
        starts = np.arange(len(images)) * size + tops * width + lefts
        shifted = slices_at(flat, starts, size).view(images.shape)
        rows, columns = inside_mask(down, height)[tops], inside_mask(right, width)[lefts]
        mask = torch.from_numpy(rows[:, None, :, None] & columns[:, None, None, :])
        shifted &= mask.to(images.device, non_blocking=True)
        return shifted

    @override
    def extra_repr(self) -> str:
        return f"max_shift={self.max_shift}"


def slices_at(flat: Tensor, starts: NDArray[np.int64], size: int) -> Tensor:
    """The slices (n, size) of a flat tensor that begin at these offsets."""
    windows = flat.as_strided((len(flat) - size + 1, size), (1, 1))
    if flat.device.type == "cpu":  # torch would copy byte by byte
        return torch.from_numpy(windows.numpy()[starts])
    return windows[torch.from_numpy(starts).to(flat.device, non_blocking=True)]


@lru_cache
def inside_mask(max_shift: int, length: int) -> NDArray[np.uint8]:
    """For each shift up to `max_shift`: 255 for rows inside of the image, 0 for others.

    >>> inside_mask(1, 3).tolist()
    [[0, 255, 255], [255, 255, 255], [255, 255, 0]]
    """
    sources = np.arange(-max_shift, max_shift + 1)[:, None] + np.arange(length)
    return ((sources >= 0) & (sources < length)).astype(np.uint8) * np.uint8(255)


class RandomHorizontalFlip(BatchAugmentation):
    """Mirror each image with probability 0.5."""

    num_draws = 1

    @override
    def augment(self, images: Tensor, draws: RandomNumbers) -> Tensor:
        chosen = np.flatnonzero(draws[:, 0] < 0.5)
        if images.device.type == "cpu":  # NumPy copies faster, as in `slices_at`
            pixels = images.numpy()
            pixels[chosen] = torch.from_numpy(pixels[chosen]).flip(-1).numpy()
        else:
            indices = torch.from_numpy(chosen).to(images.device, non_blocking=True)
            images[indices] = images[indices].flip(-1)
        return images


class RandomAffine(BatchAugmentation):
    """A rotation about the centre, a zoom and a shift; the border is filled with black.

    Args:
        degrees: The largest rotation, in both directions.
        translate: The largest shift, as a share of height and width.
        zoom: The largest change of size, as a share.
    """

    num_draws = 4

    def __init__(self, degrees: float, *, translate: float, zoom: float) -> None:
        super().__init__()
        self.degrees, self.translate, self.zoom = degrees, translate, zoom

    @override
    def augment(self, images: Tensor, draws: RandomNumbers) -> Tensor:
        size = torch.tensor(images.shape[:-3:-1])  # width, height
        signed = torch.from_numpy(draws * 2 - 1)
        angles = torch.deg2rad(signed[:, 0] * self.degrees)
        shifts = (signed[:, 1:3] * self.translate * size).round()
        scales = 1 + signed[:, 3] * self.zoom
        return affine_batch(images, angles, shifts=shifts, scales=scales)


def affine_batch(images: Tensor, angles: Tensor, *, shifts: Tensor, scales: Tensor) -> Tensor:
    """Rotate, zoom and shift each image by its own parameters.

    Args:
        images: Images (N, C, H, W) of 8 bits.
        angles: Clockwise rotations (N), in radians.
        shifts: To the right and down (N, 2), in pixels.
        scales: Zoom factors (N); above 1 to enlarge.
    """
    height, width = images.shape[-2:]
    # The source of each pixel, by elementwise operations in the same order for each image: a
    # matrix product could round differently in a batch of another size.
    cosines, sines, rights, downs = (
        number.float().to(images.device, non_blocking=True)[:, None, None]
        for number in (angles.cos() / scales, angles.sin() / scales, *shifts.unbind(1))
    )
    x = torch.arange(width, device=images.device) + (1 - width) / 2 - rights
    y = torch.arange(height, device=images.device)[:, None] + (1 - height) / 2 - downs
    columns = (cosines * x + sines * y) * (2 / width)
    rows = (cosines * y - sines * x) * (2 / height)
    grid = torch.stack([columns, rows], dim=-1)
    sampled = F.grid_sample(images.float(), grid, mode="bilinear", align_corners=False)
    return sampled.round_().to(torch.uint8)

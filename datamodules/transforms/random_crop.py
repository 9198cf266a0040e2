"""A random resized crop that decodes no more of a photograph than it needs."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import InterpolationMode, functional
from typing_extensions import override

from lit_finetune.images.data_config import Interpolation
from lit_finetune.images.read import Box

ATTEMPTS = 10


class RandomResizedCrop(nn.Module):
    """Crop a part of random size and aspect ratio, and resize it, as in torchvision.

    Args:
        size: Height and width of the result.
        interpolation: The interpolation of the resize.
        scale: The smallest and the largest share of the image's area.
        ratio: The smallest and the largest aspect ratio, width by height.
    """

    num_draws = 2 * ATTEMPTS + 2

    def __init__(
        self,
        size: tuple[int, int],
        *,
        interpolation: Interpolation,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
    ) -> None:
        super().__init__()
        self.size, self.scale, self.ratio = size, scale, ratio
        mode = InterpolationMode(interpolation)
        # Pillow's "nearest" is torch's "nearest-exact".
        exact = InterpolationMode.NEAREST_EXACT
        self.interpolation = exact if mode is InterpolationMode.NEAREST else mode

    @override
    def forward(self, image: Image.Image) -> Image.Image:
        """Crop one image by random numbers from torch's global generator."""
        pixels = np.asarray(image)
        draws = torch.rand(self.num_draws, dtype=torch.float64).tolist()
        box = self.box(pixels.shape[0], pixels.shape[1], draws)
        return functional.to_pil_image(self.crop(pixels, box))

    def box(self, height: int, width: int, draws: Sequence[float]) -> Box:
        """The part to crop, from `num_draws` random numbers from 0 to below 1."""
        low, high = (math.log(ratio) for ratio in self.ratio)
        for share, shape in zip(draws[0:-2:2], draws[1:-2:2], strict=True):
            area = height * width * (self.scale[0] + (self.scale[1] - self.scale[0]) * share)
            ratio = math.exp(low + (high - low) * shape)
            part = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < part[0] <= height and 0 < part[1] <= width:
                top = int(draws[-2] * (height - part[0] + 1))
                left = int(draws[-1] * (width - part[1] + 1))
                return Box(top, left, *part)
        return self._centre(height, width)

    def max_reduction(self, box: Box) -> float:
        """The factor by which an image may be reduced so that the part has twice the final size."""
        return min(box.height / self.size[0], box.width / self.size[1]) / 2

    def crop(self, pixels: NDArray[np.uint8], box: Box) -> Tensor:
        """The part of an image (H, W, C), resized to the final size (C, H, W)."""
        part = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
        part = part[..., None] if part.ndim == 2 else part
        if not part.flags.writeable:  # torch would warn, although nothing writes
            part = part.copy()
        image = torch.from_numpy(part).permute(2, 0, 1)
        resized = functional.resize(image, list(self.size), self.interpolation, antialias=True)
        return resized.contiguous()  # here, because it is slower for a whole batch

    def _centre(self, height: int, width: int) -> Box:
        """The largest central part of an image of extreme aspect ratio."""
        if width / height < self.ratio[0]:
            part = (round(width / self.ratio[0]), width)
        elif width / height > self.ratio[1]:
            part = (height, round(height * self.ratio[1]))
        else:
            part = (height, width)
        return Box((height - part[0]) // 2, (width - part[1]) // 2, *part)

    @override
    def extra_repr(self) -> str:
        return f"size={self.size}, interpolation={self.interpolation.value}"

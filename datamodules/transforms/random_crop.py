"""The random part of a photograph that is seen in training."""

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
    """A part of random size and proportions, resized: as torchvision's `RandomResizedCrop`.

    Args:
        size: Height and width of what comes out.
        interpolation: How it is resized.
        scale: The smallest and the largest share of the picture's area.
        ratio: The smallest and the largest quotient of width and height.
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
        # Pillow's "nearest" is what torch calls exact.
        exact = InterpolationMode.NEAREST_EXACT
        self.interpolation = exact if mode is InterpolationMode.NEAREST else mode

    @override
    def forward(self, picture: Image.Image) -> Image.Image:
        """A part of one picture, by what torch draws."""
        pixels = np.asarray(picture)
        draws = torch.rand(self.num_draws, dtype=torch.float64).tolist()
        box = self.box(pixels.shape[0], pixels.shape[1], draws)
        return functional.to_pil_image(self.cut(pixels, box))

    def box(self, height: int, width: int, draws: Sequence[float]) -> Box:
        """Which part of a picture, by `num_draws` numbers from 0 to below 1."""
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

    def excess(self, box: Box) -> float:
        """How many times smaller a picture may be, for a part to be twice as large as needed."""
        return min(box.height / self.size[0], box.width / self.size[1]) / 2

    def cut(self, pixels: NDArray[np.uint8], box: Box) -> Tensor:
        """The part (C, H, W) of a picture (H, W, C) at the size that is asked for."""
        part = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
        part = part[..., None] if part.ndim == 2 else part
        if not part.flags.writeable:  # torch warns of what it cannot protect; nothing writes here
            part = part.copy()
        picture = torch.from_numpy(part).permute(2, 0, 1)
        resized = functional.resize(picture, list(self.size), self.interpolation, antialias=True)
        return resized.contiguous()  # now, for torch takes longer over a whole batch

    def _centre(self, height: int, width: int) -> Box:
        """As much of a picture of extreme proportions as those asked for allow."""
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

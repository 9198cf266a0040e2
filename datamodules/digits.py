"""Handwritten digits of scikit-learn: real data without a download."""

from typing import Any

import numpy as np
from torch import nn
from typing_extensions import override

from lit_finetune.images.data_config import DataConfig

from .base import ImageDataModule, Part
from .dataset import ArraySamples
from .sources.stratified_split import check_fractions, split_fractions, stratified_split
from .transforms.presets import digit_geometry

MAX_VALUE = 16


class DigitsDataModule(ImageDataModule):
    """The 1,797 handwritten digits of scikit-learn, 8 x 8 pixels each.

    The images are resized to the input size of the network, without a crop. The `auto` augmentation
    is a small rotation, shift and zoom, without a flip.

    Args:
        digits: The digits to use, by default all ten; their labels are 0, 1, … in this order.
        val_split: Share of the images for validation.
        test_split: Share of the images for testing.
        num_workers: Worker processes; by default none, because the images are in memory.
        **kwargs: See `ImageDataModule`.
    """

    fills_frame = True

    def __init__(
        self,
        *,
        digits: list[int] | None = None,
        val_split: float = 0.2,
        test_split: float = 0.0,
        num_workers: int | None = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_workers=num_workers, **kwargs)
        check_fractions(val_split=val_split, test_split=test_split)
        self.digits = list(range(10)) if digits is None else list(digits)
        if len(set(self.digits)) < max(2, len(self.digits)) or not set(self.digits) <= set(
            range(10)
        ):
            raise ValueError(
                f"`digits` must be two or more of 0 to 9, each once, but got {digits}."
            )
        self.val_split = val_split
        self.test_split = test_split

    @property
    @override
    def classes(self) -> list[str]:
        return [str(digit) for digit in self.digits]

    @override
    def train_geometry(self, config: DataConfig) -> list[nn.Module]:
        return digit_geometry(config)

    @override
    def read_samples(self, part: Part) -> ArraySamples:
        samples = load_digits(self.digits)
        shares = split_fractions(val_split=self.val_split, test_split=self.test_split)
        parts = stratified_split(samples.labels, list(shares.values()), seed=self.seed)
        if part == "predict":
            part = "test" if self.test_split else "val"
        return samples.subset(dict(zip(shares, parts, strict=True)).get(part, []))


def load_digits(digits: list[int]) -> ArraySamples:
    """The images of some digits in grey RGB; the label is the index in `digits`."""
    from sklearn import datasets

    bundle = datasets.load_digits()
    chosen = [i for i, digit in enumerate(bundle.target.tolist()) if digit in digits]
    grey = (bundle.images[chosen] * (255 / MAX_VALUE)).round().astype(np.uint8)
    return ArraySamples(
        np.repeat(grey[..., None], 3, axis=-1),
        [f"digit_{i:04d}" for i in chosen],
        [digits.index(bundle.target[i]) for i in chosen],
    )

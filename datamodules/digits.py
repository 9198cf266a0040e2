"""Scikit-learn's handwritten digits: real data that needs no download."""

from typing import Any

import numpy as np
from torch import nn
from typing_extensions import override

from lit_finetune.images.data_config import DataConfig

from .base import ImageDataModule, Part
from .dataset import ArraySamples
from .sources.splits import check_fractions, split_fractions, stratified_split
from .transforms.presets import digit_geometry

BRIGHTEST = 16


class DigitsDataModule(ImageDataModule):
    """The 1,797 handwritten digits that come with scikit-learn, 8 x 8 pixels each.

    They are made as large as the network wants them, and none of the picture is cut off. `auto`
    augmentation turns, shifts and zooms a little, without mirror images.

    Args:
        digits: The digits to use, all ten if not given; they get labels from 0 on, in this order.
        val_split: Share of the pictures for validation.
        test_split: Share of the pictures for testing.
        num_workers: Processes that load pictures; none, since they are in memory already.
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
    """The pictures of some digits as grey RGB; the label is the place among `digits`."""
    from sklearn import datasets

    bundle = datasets.load_digits()
    chosen = [i for i, digit in enumerate(bundle.target.tolist()) if digit in digits]
    grey = (bundle.images[chosen] * (255 / BRIGHTEST)).round().astype(np.uint8)
    return ArraySamples(
        np.repeat(grey[..., None], 3, axis=-1),
        [f"digit_{i:04d}" for i in chosen],
        [digits.index(bundle.target[i]) for i in chosen],
    )

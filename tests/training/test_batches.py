"""Batches and losses that a classifier cannot take are told in a sentence."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lit_finetune import FinetuneClassifier

X, Y = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


def trainer() -> Trainer:
    return Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def loader(batch: Any) -> DataLoader[Any]:
    return DataLoader([batch], batch_size=None, collate_fn=lambda each: each)


class OwnLoss(FinetuneClassifier):
    def __init__(self, own: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__(network(), num_classes=3)
        self.own = own

    def loss(self, logits: Tensor, target: Tensor) -> Any:
        return self.own(logits, target)


LOSSES: dict[str, tuple[Callable[[Tensor, Tensor], Any], str]] = {
    "no reduction": (lambda x, y: F.cross_entropy(x, y, reduction="none"), r"\(4,\).*mean"),
    "one element": (lambda x, y: F.cross_entropy(x, y)[None], r"a tensor \(1,\)"),
    "a tuple": (lambda x, y: (F.cross_entropy(x, y), 1), "a tuple of 2"),
    "a dict": (lambda x, y: {"loss": F.cross_entropy(x, y)}, "a dict of loss"),
    "nothing": (lambda x, y: None, "a NoneType"),
    "NumPy": (lambda x, y: np.float32(1), "a float32"),
    "a float": (lambda x, y: 1.0, "a float"),
    "whole numbers": (lambda x, y: torch.tensor(1), "a tensor of torch.int64"),
}


@pytest.mark.parametrize("kind", LOSSES)
def test_a_loss_that_is_no_number_is_told_with_what_it_is(kind: str) -> None:
    own, words = LOSSES[kind]
    with pytest.raises(TypeError, match=f"`loss` returns one float tensor.*{words}"):
        trainer().fit(OwnLoss(own), loader((X, Y)))
    with pytest.raises(TypeError, match=f"`loss` returns one float tensor.*{words}"):
        trainer().validate(OwnLoss(own), loader((X, Y)))


def test_a_loss_that_is_cut_off_from_what_trains_is_told() -> None:
    with pytest.raises(ValueError, match="does not depend on any parameter that trains"):
        trainer().fit(OwnLoss(lambda x, y: F.cross_entropy(x.detach(), y)), loader((X, Y)))


BATCHES: dict[str, tuple[Any, str]] = {
    "truth values": ((X, Y > 0), "torch.bool"),
    "float labels": ((X, Y.float()), r"torch.float32: convert by `\.long\(\)`"),
    "a column": ((X, Y[:, None]), r"\(4, 1\): `squeeze\(1\)`"),
    "one-hot": ((X, F.one_hot(Y, 3)), r"one-hot.*`argmax\(1\)`"),
    "texts": ((X, ["a", "b", "c", "a"]), "a list of 4"),
    "bytes": (((X * 9).byte(), Y), "torch.uint8, but floats are needed"),
    "channels last": ((X.permute(0, 2, 3, 1), Y), r"channels last: `permute\(0, 3, 1, 2\)`"),
    "grey": ((X[:, :1], Y), r"\(4, 1, 8, 8\), but the network takes \(N, 3, H, W\)"),
    "double": ((X.double(), Y), "torch.float64, but the network is torch.float32"),
    "NumPy": ((X.numpy(), Y), "a ndarray"),
    "three": ((X, Y, Y), "a pair of images and labels, but .* a tuple of 3"),
    "a dict": ({"image": X, "label": Y}, "a pair of images and labels.*a dict of image, label"),
    "images alone": (X, "a pair of images and labels"),
}


@pytest.mark.parametrize("kind", BATCHES)
def test_a_batch_that_cannot_be_taken_is_told_with_what_it_is(kind: str) -> None:
    batch, words = BATCHES[kind]
    for run in (trainer().fit, trainer().validate):
        with pytest.raises(ValueError, match=words):
            run(FinetuneClassifier(network(), num_classes=3), loader(batch))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
@pytest.mark.parametrize("options", [{}, {"class_weights": [1.0, 2.0, 5.0]}, {"mixup_alpha": 0.4}])
def test_labels_of_any_whole_numbers_are_those_of_int64(
    dtype: torch.dtype, options: dict[str, Any]
) -> None:
    values = []
    for labels in (Y, Y.to(dtype)):
        torch.manual_seed(0)
        model = FinetuneClassifier(network(), num_classes=3, **options)
        run = trainer()
        run.fit(model, loader((X, labels)), loader((X, labels)))
        values.append({name: value.item() for name, value in run.callback_metrics.items()})
    assert values[0] == values[1]

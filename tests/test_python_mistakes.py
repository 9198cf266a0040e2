"""Mistakes in a few lines of Python end in one sentence with the word that helps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_finetune import FinetuneClassifier, fit_linear_probe, list_blocks, load_weights
from lit_finetune.callbacks import FrozenPrefixCache, LinearProbe


def net() -> nn.Module:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    network.data_config = {"image_size": [2, 2], "resize_size": 2}
    return network


def model(**options: Any) -> FinetuneClassifier:
    return FinetuneClassifier(net(), **{"num_classes": 3, **options})


def trainer() -> Trainer:
    return Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def loader(labels: torch.Tensor) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.rand(len(labels), 3, 2, 2), labels), batch_size=4)


LABELS = torch.arange(12) % 3
MISTAKES: dict[str, tuple[Callable[[], object], str]] = {
    "labels from 1 on": (lambda: trainer().fit(model(), loader(LABELS + 1)), "num_classes=3"),
    "a label of -1": (lambda: trainer().fit(model(), loader(LABELS - 1)), "num_classes=3"),
    "labels from 1 on, to validate": (
        lambda: trainer().validate(model(), loader(LABELS + 1), verbose=False),
        "num_classes=3",
    ),
    "optimizer as text": (lambda: model(optimizer="adam"), r"torch\.optim"),
    "scheduler as text": (lambda: model(lr_scheduler="cosine"), r"torch\.optim\.lr_scheduler"),
    "weights as a number": (lambda: model(weights=5), "the path of a file"),
    "a head's number": (lambda: model(head_name=3), "name of a module"),
    "half a class": (lambda: model(num_classes=2.5), "number of classes"),
    "an interval of epochs": (lambda: model(lr_scheduler_interval="epochs"), "'epoch' or 'step'"),
    "yes": (lambda: model(compile="yes"), "true or false"),
    "blocks of a name": (lambda: list_blocks("resnet18"), "Build it first"),
    "blocks of a class": (lambda: list_blocks(nn.Linear), "Build it first"),
    "weights into a name": (lambda: load_weights("resnet18", "a.pth"), "Build it first"),
    "weights from a dict": (lambda: load_weights(net(), {"a": 1}), "load_state_dict"),
    "a probe of lists": (lambda: fit_linear_probe([[1.0]], [0]), r"torch\.as_tensor"),
    "a probe of text": (lambda: LinearProbe(l2="x"), "positive number"),
    "a probe of one fold": (lambda: LinearProbe(folds=1), "2 or more"),
    "a dtype of torch": (lambda: FrozenPrefixCache(dtype=torch.float16), "Choose one of: bf16"),
    "a list of pictures": (lambda: model().predict_image([Path("a.png")]), "one picture"),
    "an array": (lambda: model().predict_image(torch.zeros(3, 2, 2)), "one picture"),
}


@pytest.mark.parametrize(("act", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_with_the_word_that_helps(act: Callable[[], object], words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words) as caught:
        act()
    assert len(str(caught.value).splitlines()) <= 6


def test_a_loss_of_ones_own_takes_what_labels_it_likes() -> None:
    class Ignores(FinetuneClassifier):
        def loss(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return nn.functional.cross_entropy(logits, target, ignore_index=-1)

    labels = LABELS.clone()
    labels[0] = -1
    trainer().fit(Ignores(net(), num_classes=3), loader(labels))

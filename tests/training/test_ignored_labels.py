"""With a loss of one's own, ignored labels and targets of several classes are not counted."""

from typing import Any

import pytest
import torch
from sklearn.metrics import accuracy_score
from torch import Tensor
from torch.nn import functional as F
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from lit_finetune import FinetuneClassifier
from tests.training.test_nonfinite import network
from tests.training.test_reference_scores import make_trainer, pictures


class Ignoring(FinetuneClassifier):
    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits, target)

    def loss_weight(self, logits: Tensor, target: Any) -> Tensor:
        return (target != -100).sum()

    def metrics(self, num_classes: int, prefix: str) -> Any:
        return {"acc": MulticlassAccuracy(num_classes, average="micro", ignore_index=-100)}


class MultiLabel(FinetuneClassifier):
    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, target)

    def metrics(self, num_classes: int, prefix: str) -> Any:
        return {}


def model(kind: Any, **options: Any) -> Any:
    net = network()
    net[1].momentum = 0.0
    options = {"num_classes": 3, "lr_scheduler": "constant", **options}
    return kind(net, optimizer=lambda groups: SGD(groups, lr=0.0), **options)


@pytest.mark.parametrize("batch_size", [1, 4, 20])
def test_a_batch_of_ignored_labels_does_not_count_in_the_loss(batch_size: int) -> None:
    images, labels = pictures(20, 3).tensors
    labels = labels.clone()
    labels[12:] = -100
    module = model(Ignoring).eval()
    trainer = make_trainer()
    trainer.validate(module, DataLoader(TensorDataset(images, labels), batch_size), verbose=False)
    expected = F.cross_entropy(module(images[:12]), labels[:12])
    torch.testing.assert_close(trainer.callback_metrics["val/loss"], expected)


def test_the_accuracy_of_training_is_over_the_labels_that_count() -> None:
    images, labels = pictures(24, 3).tensors
    labels = labels.clone()
    labels[::2] = -100
    module = model(Ignoring)
    outputs: list[Tensor] = []
    module.backbone.register_forward_hook(lambda _, __, logits: outputs.append(logits.argmax(1)))
    trainer = make_trainer()
    trainer.fit(module, DataLoader(TensorDataset(images, labels), 4))
    expected = accuracy_score(labels[1::2], torch.cat(outputs)[1::2])
    assert float(trainer.callback_metrics["train/acc"]) == pytest.approx(expected)


@pytest.mark.parametrize("options", [{"mixup_alpha": 0.3}, {}], ids=str)
def test_targets_of_several_classes_have_no_accuracy(options: dict[str, Any]) -> None:
    images, labels = pictures(12, 3).tensors
    target = F.one_hot(labels, 3).float()
    target[:, 0] = 1.0
    trainer = make_trainer()
    trainer.fit(model(MultiLabel, **options), DataLoader(TensorDataset(images, target), 4))
    assert "train/loss" in trainer.callback_metrics
    assert "train/acc" not in trainer.callback_metrics

"""A Trainer that has run a classifier runs any other module as a new one would."""

from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader, TensorDataset

from lit_finetune import FinetuneClassifier


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.stem(x).mean((2, 3)))


class Foreign(LightningModule):
    """A module of somebody else."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("own/loss", self.training_step(batch, batch_idx))

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.net(batch[0])

    def configure_optimizers(self) -> Optimizer:
        return SGD(self.parameters(), lr=0.1)


def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.randn(8, 3, 8, 8), torch.arange(8) % 3), batch_size=4)


def make_trainer() -> Trainer:
    return Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def classifier() -> FinetuneClassifier:
    return FinetuneClassifier(Net(), num_classes=3, lr_scheduler="constant")


@pytest.mark.parametrize("first", ["fit", "validate"])
def test_a_module_that_is_no_classifier_is_let_alone_after_one(first: str) -> None:
    trainer, data, foreign = make_trainer(), loader(), Foreign()
    if first == "fit":
        trainer.fit(classifier(), data, data)
        trainer.fit_loop.max_epochs = 2
    else:
        trainer.validate(classifier(), data, verbose=False)

    trainer.fit(foreign, data, data)
    assert set(trainer.callback_metrics) == {"own/loss"}
    for evaluate in (trainer.validate, trainer.test):
        assert evaluate(foreign, data, verbose=False)[0].keys() == {"own/loss"}
    assert len(trainer.predict(foreign, data) or []) == 2


def test_a_second_classifier_is_measured_by_itself() -> None:
    trainer, data, first, second = make_trainer(), loader(), classifier(), classifier()
    trainer.fit(first, data, data)
    expected = make_trainer().validate(second, data, verbose=False)

    assert trainer.validate(second, data, verbose=False) == expected
    assert trainer.validate(first, data, verbose=False) != expected
    assert trainer.validate(second, data, verbose=False) == expected


def test_a_classifier_inside_another_module_leaves_the_hooks_to_that() -> None:
    class Around(Foreign):
        def __init__(self) -> None:
            super().__init__()
            self.net = classifier()

    trainer, data = make_trainer(), loader()
    trainer.fit(Around(), data, data)
    assert set(trainer.callback_metrics) == {"own/loss"}

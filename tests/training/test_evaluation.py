"""What a subclass measures is logged by its names, and targets may be of any shape."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from sklearn.metrics import confusion_matrix, f1_score, recall_score
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassRecall,
    MultilabelF1Score,
)
from torchmetrics.wrappers import ClasswiseWrapper, MinMaxMetric

from lit_finetune import FinetuneClassifier
from tests.training.test_reference_scores import logits_of, make_trainer, network, pictures


class Measured(FinetuneClassifier):
    """With metrics of many values."""

    def metrics(self, num_classes: int, prefix: str) -> MetricCollection:
        metrics = super().metrics(num_classes, prefix)
        recall = MulticlassRecall(num_classes, average=None)
        nested = MetricCollection({"f1": MulticlassF1Score(num_classes, average=None)})
        metrics.add_metrics(
            {
                "recall": recall,
                "wrapped": ClasswiseWrapper(recall.clone(), prefix="wrapped_"),
                "extremes": MinMaxMetric(MulticlassRecall(num_classes)),
                "confusion": MulticlassConfusionMatrix(num_classes),
                "nested": nested,
            }
        )
        return metrics

    def on_validation_epoch_end(self) -> None:
        """A hook of one's own, which does not call the classifier's."""


@pytest.mark.parametrize("has_logger", [False, True])
def test_many_values_are_logged_by_their_names_and_no_number_is_kept(
    has_logger: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    data, model = pictures(31, 3), Measured(network(3), num_classes=3, lr=1e-30)
    model.classes = ["ant", "bee", "cat"]
    trainer = make_trainer(max_epochs=2, logger=CSVLogger(tmp_path) if has_logger else False)

    trainer.fit(model, DataLoader(data, 8), DataLoader(data, 8))

    labels, predicted = data.tensors[1], logits_of(network(3), data).argmax(dim=1)
    recalls = recall_score(labels, predicted, average=None)
    f1s = f1_score(labels, predicted, average=None)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    for name, recall, f1 in zip(model.classes, recalls, f1s, strict=True):
        assert logged[f"val/recall_{name}"] == pytest.approx(recall)
        assert logged[f"val/wrapped_{name}"] == pytest.approx(recall)
        assert logged[f"val/nested_f1_{name}"] == pytest.approx(f1)
    assert "val/max" in logged
    assert not [name for name in logged if "confusion" in name]
    kept = model.metric_values["val/confusion"]
    assert kept.tolist() == confusion_matrix(labels, predicted).tolist()
    assert caplog.text.count("val/confusion is a tensor (3, 3)") == 1


class ManyLabels(FinetuneClassifier):
    """A picture may be of several classes; labels lie in a tensor, a tuple or a dictionary."""

    def labels(self, target: Any) -> Tensor:
        if isinstance(target, dict):
            target = target["labels"]
        return target[0] if isinstance(target, tuple | list) else target

    def loss(self, logits: Tensor, target: Any) -> Tensor:
        return binary_cross_entropy_with_logits(logits, self.labels(target).float())

    def metrics(self, num_classes: int, prefix: str) -> MetricCollection:
        return MetricCollection({"f1": OfTarget(self.labels, num_classes)}, prefix=prefix)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0]).sigmoid()


class OfTarget(MultilabelF1Score):
    """Takes the labels out of a target."""

    def __init__(self, labels: Any, num_classes: int) -> None:
        super().__init__(num_classes)
        self._labels = labels

    def update(self, preds: Tensor, target: Any) -> None:
        super().update(preds, self._labels(target).long())


class Targets(Dataset[Any]):
    """Pictures whose labels (C) come in some form."""

    def __init__(self, form: str) -> None:
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.randint(0, 2, (30, 3), generator=generator)
        self.images = torch.randn(30, 3, 8, 8, generator=generator)
        self.form = form

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        one, area = self.labels[index], torch.tensor(0.5)
        made = {
            "int": one,
            "float": one.float(),
            "tuple": (one, area),
            "dict": {"labels": one, "area": area},
        }
        return self.images[index], made[self.form]


@pytest.mark.parametrize("form", ["int", "float", "tuple", "dict"])
@pytest.mark.parametrize("batch_size", [1, 7])
def test_targets_of_any_shape_train_validate_and_predict(form: str, batch_size: int) -> None:
    data = Targets(form)
    loader = DataLoader(data, batch_size)
    model = ManyLabels(network(3), num_classes=3, lr=1e-30, lr_scheduler="constant")
    trainer = make_trainer()

    trainer.fit(model, loader, loader)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    predicted = torch.cat(trainer.predict(model, loader))  # type: ignore[arg-type]

    with torch.no_grad():
        logits = network(3)(data.images)
    loss = binary_cross_entropy_with_logits(logits, data.labels.float()).item()
    f1 = f1_score(data.labels, logits.sigmoid() > 0.5, average="macro", zero_division=0)
    assert logged == pytest.approx({"train/loss": loss, "val/loss": loss, "val/f1": f1}, abs=1e-6)
    torch.testing.assert_close(predicted, logits.sigmoid())


def test_probabilities_as_targets_train_without_an_accuracy() -> None:
    images, soft = torch.randn(10, 3, 8, 8), torch.rand(10, 3).softmax(dim=1)
    model = FinetuneClassifier(network(3), num_classes=3, lr=1e-30, class_weights=[1.0, 2.0, 5.0])
    trainer = make_trainer()

    trainer.fit(model, DataLoader(TensorDataset(images, soft), 4))

    with torch.no_grad():
        logits = network(3)(images)
    expected = cross_entropy(logits, soft, weight=torch.tensor([1.0, 2.0, 5.0])).item()
    assert trainer.callback_metrics["train/loss"].item() == pytest.approx(expected, abs=1e-6)
    assert "train/acc" not in trainer.callback_metrics


def test_a_validation_loss_that_is_no_number_is_told() -> None:
    data = pictures(6, 3)
    data.tensors[0][4, 0, 0, 0] = torch.nan
    model = FinetuneClassifier(network(3), num_classes=3)

    with pytest.warns(UserWarning, match="val/loss is nan in epoch 0"):
        make_trainer().validate(model, DataLoader(data, 2), verbose=False)

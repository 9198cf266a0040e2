"""The metrics of a classifier."""

from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score
from typing_extensions import override


def accuracy(
    num_classes: int, *, average: Literal["micro", "macro"] = "micro", top_k: int = 1
) -> Metric:
    """The share of images whose class is among the `top_k` most probable.

    It does not validate its arguments, which would wait for the device at each step.
    """
    kind = BalancedAccuracy if average == "macro" else MulticlassAccuracy
    return kind(num_classes, top_k=top_k, average=average, validate_args=False)


class BalancedAccuracy(MulticlassAccuracy):
    """The mean of the classes' accuracies.

    A class without images is left out, as in scikit-learn's `balanced_accuracy_score`; torchmetrics
    counts it as 0 once the network has predicted it.
    """

    @override
    def compute(self) -> Tensor:
        """The mean."""
        right, _, _, missed = self._final_state()
        pictures = right + missed
        return (right / pictures)[pictures > 0].mean()


class MeanLoss(Metric):
    """The mean loss over all images of all processes.

    torchmetrics' `MeanMetric` waits for the device at each step to check for nan, and without this
    check (`nan_strategy="disable"`) ignores the weights.
    """

    total: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        # With many batches of one image, single precision would lose digits of the sum.
        self._exact = torch.float32 if torch.backends.mps.is_available() else torch.float64
        self.add_state("total", torch.zeros((), dtype=self._exact), dist_reduce_fx="sum")
        self.add_state("weight", torch.zeros((), dtype=self._exact), dist_reduce_fx="sum")

    @override
    def update(self, loss: Tensor, weight: Tensor | int) -> None:
        """Add the mean loss of a batch.

        Args:
            loss: The mean loss of the batch.
            weight: The divisor of the mean: the number or weight of its images.
        """
        self.total += weighted_loss(loss.detach().to(self.total), weight)
        self.weight += weight

    @override
    def reset(self) -> None:
        """Reset to no batches."""
        super().reset()
        # Converting a module to half precision converts the states of its metrics, too.
        self.total, self.weight = self.total.to(self._exact), self.weight.to(self._exact)

    @override
    def compute(self) -> Tensor:
        """The mean."""
        return (self.total / self.weight).float()


def loss_weight(target: Any, class_weights: Tensor | None, num_pictures: int) -> Tensor | int:
    """The divisor of torch's mean cross-entropy over a batch, for the mean over an epoch.

    It is the sum of the images' class weights, or their number if targets are probabilities (mixed
    images) or the classes have no weights.

    >>> loss_weight(torch.tensor([0, 1, 1]), torch.tensor([0.5, 2.0]), 3)
    tensor(4.5000)
    """
    if class_weights is None or not is_class_index(target):
        return num_pictures
    return class_weights[target].sum()


def weighted_loss(loss: Tensor, weight: Tensor | int) -> Tensor:
    """A batch's mean loss times its weight; 0 if all its labels are ignored (nan times 0).

    >>> weighted_loss(torch.tensor(torch.nan), 0), weighted_loss(torch.tensor(0.5), 4)
    (tensor(0.), tensor(2.))
    """
    is_empty = ~loss.isfinite() & (weight == 0)
    return (loss * weight).masked_fill(is_empty, 0)


def is_class_index(target: Any) -> bool:
    """Whether a target is a class index for each image, of shape (N)."""
    return isinstance(target, Tensor) and target.dim() == 1 and not target.is_floating_point()


def classification_metrics(num_classes: int, prefix: str) -> MetricCollection:
    """Accuracy over images and over classes, macro F1, and top-5 accuracy above five classes.

    They count on the device, and are reduced over processes when an epoch ends.

    >>> sorted(classification_metrics(10, "val/"))
    ['val/acc', 'val/acc_macro', 'val/acc_top5', 'val/f1']
    """
    metrics: dict[str, Metric | MetricCollection] = {
        "acc": accuracy(num_classes),
        "acc_macro": accuracy(num_classes, average="macro"),
        "f1": MulticlassF1Score(num_classes, average="macro", validate_args=False),
    }
    # Explicit groups: torchmetrics would merge metrics that are equal after the first batch, such
    # as accuracy and top-5 accuracy if all its images are right.
    groups = [["acc"], ["acc_macro", "f1"]]
    if num_classes > 5:
        metrics["acc_top5"] = accuracy(num_classes, top_k=5)
        groups.append(["acc_top5"])
    return MetricCollection(metrics, prefix=prefix, compute_groups=groups)


def as_collection(metrics: Any, prefix: str) -> MetricCollection:
    """A subclass's metric, metrics by name, or collection, as a collection.

    >>> list(as_collection(accuracy(3), "val/"))
    ['val/MulticlassAccuracy']
    """
    is_one = isinstance(metrics, MetricCollection)
    return metrics if is_one else MetricCollection(metrics, prefix=prefix)


def probabilities(logits: Tensor) -> Tensor:
    """The softmax of logits, in single precision at least: bfloat16 has three digits.

    >>> probabilities(torch.zeros(1, 4, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    return logits.softmax(dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))

"""What is measured of a classifier."""

from typing import Literal

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score
from typing_extensions import override


def accuracy(
    num_classes: int, *, average: Literal["micro", "macro"] = "micro", top_k: int = 1
) -> Metric:
    """The share of pictures whose class is among the `top_k` most probable.

    It takes its arguments on trust: to check them would wait for the device at every step.
    """
    return MulticlassAccuracy(num_classes, top_k=top_k, average=average, validate_args=False)


class MeanLoss(Metric):
    """The mean of batches' losses over all pictures of all processes.

    Torchmetrics' own mean would wait for the device at every step to look for what is no number,
    and without that (`nan_strategy="disable"`) forgets the weights.
    """

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(()), dist_reduce_fx="sum")

    @override
    def update(self, loss: Tensor, count: int) -> None:
        """Count a batch whose mean loss this is."""
        self.total += loss.detach() * count
        self.count += count

    @override
    def compute(self) -> Tensor:
        """The mean."""
        return self.total / self.count


def classification_metrics(num_classes: int, prefix: str) -> MetricCollection:
    """Accuracy over pictures and over classes, macro F1, and top-5 accuracy above five classes.

    They count on the device and meet between processes when an epoch ends.

    >>> sorted(classification_metrics(10, "val/"))
    ['val/acc', 'val/acc_macro', 'val/acc_top5', 'val/f1']
    """
    metrics: dict[str, Metric | MetricCollection] = {
        "acc": accuracy(num_classes),
        "acc_macro": accuracy(num_classes, average="macro"),
        "f1": MulticlassF1Score(num_classes, average="macro", validate_args=False),
    }
    # Those that count the same are said: torchmetrics would else take for one what is equal after
    # the first batch, as accuracy and top-5 accuracy are when all of its pictures are right.
    groups = [["acc"], ["acc_macro", "f1"]]
    if num_classes > 5:
        metrics["acc_top5"] = accuracy(num_classes, top_k=5)
        groups.append(["acc_top5"])
    return MetricCollection(metrics, prefix=prefix, compute_groups=groups)


def probabilities(logits: Tensor) -> Tensor:
    """The softmax of logits, in single precision at least: bfloat16 has three digits.

    >>> probabilities(torch.zeros(1, 4, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    return logits.softmax(dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))

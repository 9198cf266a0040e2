"""Cross-entropy with its gradient and curvature with respect to the logits, without autograd."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lit_finetune.training.class_weights import balanced_weights

ClassWeights = Sequence[float] | Tensor | str | None
"""A weight per class, or `balanced`, or none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Criterion:
    """The cross-entropy loss of a classifier, summed over samples.

    Labels (N) select the softmax cross-entropy of `functional.cross_entropy`. Labels (N, C) of 0
    and 1 select the binary cross-entropy of each class, summed over the classes.
    """

    weights: Tensor
    """The weight of each class (C); with labels (N, C) of its absence and its presence (2, C)."""
    label_smoothing: float = 0.0

    def total_weight(self, labels: Tensor) -> float:
        """The divisor that turns the sum over samples into a mean."""
        return len(labels) if labels.dim() == 2 else float(self.weights[labels].sum())

    def __call__(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The summed loss, its gradient (N, C) and mean curvature with respect to the logits."""
        loss = self._cross_entropy if labels.dim() == 1 else self._binary_cross_entropy
        return loss(logits, labels)

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        num_classes = logits.shape[1]
        targets = functional.one_hot(labels, num_classes).type(logits.dtype)
        smooth = targets * (1 - self.label_smoothing) + self.label_smoothing / num_classes
        # As in torch: each class of a smoothed label has its own weight, not that of the label.
        targets = self.weights * smooth
        weights = targets.sum(dim=1, keepdim=True)
        log_p = logits.log_softmax(dim=1)
        p = log_p.exp()
        curvature = (weights * p * (1 - p)).sum() / (num_classes - 1)
        return -(targets * log_p).sum(), weights * p - targets, curvature

    def _binary_cross_entropy(
        self, logits: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        weights = torch.where(labels > 0, self.weights[1], self.weights[0])
        smoothing = self.label_smoothing
        targets = labels.type(logits.dtype) * (1 - smoothing) + smoothing / 2
        loss = functional.binary_cross_entropy_with_logits(
            logits, targets, weights, reduction="sum"
        )
        p = logits.sigmoid()
        curvature = (weights * p * (1 - p)).sum() / logits.shape[1]
        return loss, weights * (p - targets), curvature


def make_criterion(
    labels: Tensor, num_classes: int, class_weights: ClassWeights, label_smoothing: float
) -> Criterion:
    """The criterion for these labels, (N) or (N, C), from which `balanced` counts the classes.

    Raises:
        ValueError: `balanced`, and a class has no sample.
    """
    is_multilabel = labels.dim() == 2
    if class_weights is None:
        weights = torch.ones(num_classes, dtype=torch.float64)
    elif not isinstance(class_weights, str):
        weights = torch.as_tensor(class_weights, dtype=torch.float64).cpu()
    elif is_multilabel:
        weights = _balanced_multilabel_weights(labels)
    else:
        names = [str(index) for index in range(num_classes)]
        counts = torch.bincount(labels.cpu(), minlength=num_classes).tolist()
        balanced = balanced_weights(dict(zip(names, counts, strict=True)), names)
        weights = torch.tensor(balanced, dtype=torch.float64)
    if is_multilabel and weights.dim() == 1:
        weights = weights.expand(2, -1)
    return Criterion(weights=weights.to(labels.device), label_smoothing=label_smoothing)


def _balanced_multilabel_weights(labels: Tensor) -> Tensor:
    """Weights (2, C) that give absence and presence of each class the same total weight."""
    present = labels.cpu().double().sum(dim=0)
    counts = torch.stack([len(labels) - present, present])
    if bool((counts == 0).any()):
        constant = (counts == 0).any(dim=0).nonzero().flatten().tolist()
        raise ValueError(
            "class_weights='balanced' needs samples with and without each class, but these classes"
            f" have only one of the two: {', '.join(map(str, constant))}."
        )
    return len(labels) / (2 * counts)

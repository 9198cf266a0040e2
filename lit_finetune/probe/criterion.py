"""Cross-entropy with its gradient and curvature by the logits, with nothing left to autograd."""

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
    """Cross-entropy as a classifier's loss counts it.

    Labels (N) mean the softmax's, as `functional.cross_entropy` has it; labels (N, C) of 0 and 1
    that of each class for itself, summed over the classes.
    """

    weights: Tensor
    """What each class counts (C); with labels (N, C) what its absence and presence do (2, C)."""
    label_smoothing: float = 0.0

    def total(self, labels: Tensor) -> float:
        """What the sum over samples is divided by to be a mean."""
        return len(labels) if labels.dim() == 2 else float(self.weights[labels].sum())

    def __call__(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The sum over samples, its gradient by the logits, and a mean of its curvature by them."""
        return (self._single if labels.dim() == 1 else self._multiple)(logits, labels)

    def _single(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        num_classes = logits.shape[1]
        wanted = functional.one_hot(labels, num_classes).type(logits.dtype)
        smooth = wanted * (1 - self.label_smoothing) + self.label_smoothing / num_classes
        # As in torch: a smoothed label counts by the class that it speaks of, not by its own.
        wanted = self.weights * smooth
        counts = wanted.sum(dim=1, keepdim=True)
        log_p = logits.log_softmax(dim=1)
        p = log_p.exp()
        curvature = (counts * p * (1 - p)).sum() / (num_classes - 1)
        return -(wanted * log_p).sum(), counts * p - wanted, curvature

    def _multiple(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        counts = torch.where(labels > 0, self.weights[1], self.weights[0])
        wanted = labels.type(logits.dtype) * (1 - self.label_smoothing) + self.label_smoothing / 2
        loss = functional.binary_cross_entropy_with_logits(logits, wanted, counts, reduction="sum")
        p = logits.sigmoid()
        curvature = (counts * p * (1 - p)).sum() / logits.shape[1]
        return loss, counts * (p - wanted), curvature


def make_criterion(
    labels: Tensor, num_classes: int, class_weights: ClassWeights, label_smoothing: float
) -> Criterion:
    """The criterion for these labels, (N) or (N, C), to which `balanced` refers.

    Raises:
        ValueError: The classes are to be balanced, and there is none of one of them.
    """
    is_multiple = labels.dim() == 2
    if class_weights is None:
        weights = torch.ones(num_classes, dtype=torch.float64)
    elif not isinstance(class_weights, str):
        weights = torch.as_tensor(class_weights, dtype=torch.float64).cpu()
    elif is_multiple:
        weights = _balanced_answers(labels)
    else:
        names = [str(index) for index in range(num_classes)]
        counts = torch.bincount(labels.cpu(), minlength=num_classes).tolist()
        balanced = balanced_weights(dict(zip(names, counts, strict=True)), names)
        weights = torch.tensor(balanced, dtype=torch.float64)
    if is_multiple and weights.dim() == 1:
        weights = weights.expand(2, -1)
    return Criterion(weights=weights.to(labels.device), label_smoothing=label_smoothing)


def _balanced_answers(labels: Tensor) -> Tensor:
    """What absence and presence of each class weigh (2, C), to weigh the same in all."""
    present = labels.cpu().double().sum(dim=0)
    counts = torch.stack([len(labels) - present, present])
    if bool((counts == 0).any()):
        never = (counts == 0).any(dim=0).nonzero().flatten().tolist()
        raise ValueError(
            "class_weights='balanced' needs samples with and without each class; it has not both"
            f" of {', '.join(map(str, never))}."
        )
    return len(labels) / (2 * counts)

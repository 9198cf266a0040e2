"""The loss and the accuracy of a linear head on features."""

from collections.abc import Callable

from torch import Tensor

from lit_finetune.probe.criterion import Criterion
from lit_finetune.probe.standardize import in_chunks


def mean_scores(
    criterion: Criterion, logits: Callable[[Tensor], Tensor], features: Tensor, labels: Tensor
) -> tuple[float, float]:
    """The mean loss and the accuracy over samples.

    >>> import torch
    >>> features, labels = torch.tensor([[9.0, -9.0], [9.0, -9.0]]), torch.tensor([0, 1])
    >>> loss, accuracy = mean_scores(Criterion(weights=torch.ones(2)), abs, features, labels)
    >>> round(loss, 4), accuracy
    (0.6931, 0.5)

    Args:
        criterion: Gives the loss.
        logits: From features (n, D) to logits (n, C).
        features: Features (N, D).
        labels: Their labels: class indices (N) of type int64, or 0 and 1 for each class (N, C),
            where the accuracy counts each of the N x C answers.
    """
    loss, correct, count = 0.0, 0, 0
    for rows, targets in in_chunks(features, labels):
        output = logits(rows)
        loss += float(criterion(output, targets)[0])
        hits = output.argmax(dim=1) == targets if targets.dim() == 1 else (output > 0) == targets
        correct, count = correct + int(hits.sum()), count + hits.numel()
    return loss / criterion.total_weight(labels), correct / count

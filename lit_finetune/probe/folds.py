"""Deal samples out into folds for a cross-validation."""

import torch
from torch import Tensor


def deal_folds(labels: Tensor, folds: int, *, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """The indices of samples to fit and of samples to hold out, for each fold.

    Each fold holds out its share of every class. A class of one sample is never held out.

    >>> [held.tolist() for _, held in deal_folds(torch.tensor([0, 1, 0, 1, 2]), 2)]
    [[0, 1], [2, 3]]

    Args:
        labels: Of the samples (N), or (N, C) of 0 and 1, of which the rarest class counts.
        folds: How many.
        seed: Of the order in which they are dealt.

    Raises:
        ValueError: No class has two samples.
    """
    kinds = _kinds(labels.cpu())
    order = torch.randperm(len(kinds), generator=torch.Generator().manual_seed(seed))
    # Class after class, and in each in the order that was drawn.
    order = order[torch.argsort(kinds[order], stable=True)]
    counts = torch.bincount(kinds)
    order = order[counts[kinds[order]] > 1]
    if not len(order):
        raise ValueError(
            "There are too few samples for a cross-validation: give validation features, or one"
            " strength as `l2`."
        )
    dealt = torch.full_like(kinds, -1)
    dealt[order] = torch.arange(len(order)) % folds
    held = [(dealt == fold).nonzero().flatten() for fold in range(min(folds, len(order)))]
    fitted = [(dealt != fold).nonzero().flatten() for fold in range(len(held))]
    return list(zip(fitted, held, strict=True))


def _kinds(labels: Tensor) -> Tensor:
    """A number for each sample, the same for those that are to be spread over the folds."""
    if labels.dim() == 1:
        return labels.long()
    num_classes = labels.shape[1]
    rarity = torch.where(labels > 0, labels.sum(dim=0).double(), torch.inf)
    rarest = rarity.argmin(dim=1)
    return torch.where((labels > 0).any(dim=1), rarest, num_classes)

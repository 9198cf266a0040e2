"""Split samples into stratified folds for a cross-validation."""

import torch
from torch import Tensor


def stratified_folds(labels: Tensor, folds: int, *, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """The indices of the samples to fit and of the samples to validate, for each fold.

    Each fold validates on its share of every class. The only sample of a class is always fitted.

    >>> [val.tolist() for _, val in stratified_folds(torch.tensor([0, 1, 0, 1, 2]), 2)]
    [[0, 1], [2, 3]]

    Args:
        labels: Class indices (N), or 0 and 1 for each class (N, C): then a sample belongs to the
            rarest of its classes.
        folds: The number of folds.
        seed: Of the order in which samples are assigned to folds.

    Raises:
        ValueError: No class has two samples.
    """
    strata = _strata(labels.cpu())
    order = torch.randperm(len(strata), generator=torch.Generator().manual_seed(seed))
    # Class after class, and within a class in random order.
    order = order[torch.argsort(strata[order], stable=True)]
    counts = torch.bincount(strata)
    order = order[counts[strata[order]] > 1]
    if not len(order):
        raise ValueError(
            "There are too few samples for a cross-validation: give validation features, or one"
            " strength as `l2`."
        )
    fold_of = torch.full_like(strata, -1)
    fold_of[order] = torch.arange(len(order)) % folds
    val = [(fold_of == fold).nonzero().flatten() for fold in range(min(folds, len(order)))]
    train = [(fold_of != fold).nonzero().flatten() for fold in range(len(val))]
    return list(zip(train, val, strict=True))


def _strata(labels: Tensor) -> Tensor:
    """The class (N) of each sample that folds are stratified by; C for a sample without a class."""
    if labels.dim() == 1:
        return labels.long()
    num_classes = labels.shape[1]
    rarity = torch.where(labels > 0, labels.sum(dim=0).double(), torch.inf)
    rarest = rarity.argmin(dim=1)
    return torch.where((labels > 0).any(dim=1), rarest, num_classes)

"""Choose the strength of L2 for a linear probe by validation samples or cross-validation."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_finetune.probe.folds import stratified_folds
from lit_finetune.probe.lbfgs import Minimum, minimize
from lit_finetune.probe.loss import LabelledFeatures, ProbeLoss

PATIENCE = 2
"""The search stops after this many strengths in a row that do not improve the loss."""
SEARCH_TOLERANCE = 1e-7
"""The tolerance of a fit that only compares strengths: their losses differ by far more."""
ONE_FOLD_SAMPLES = 50_000
"""From this many samples on one fold is enough; the others would only take memory."""

Split = tuple[LabelledFeatures, LabelledFeatures]
"""Samples to fit, and samples to validate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """The scores of one strength of L2 on samples that were not fitted."""

    l2: float
    loss: float
    accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Solver:
    """Fits the weights and biases of a head by L-BFGS."""

    num_classes: int
    max_iterations: int
    tolerance: float

    def fit(
        self,
        data: LabelledFeatures,
        l2: float,
        start: Tensor | None = None,
        tolerance: float | None = None,
    ) -> Minimum:
        """The best weights and biases (C, D + 1) for one strength of L2."""
        if start is None:
            size = (self.num_classes, data.features.shape[1] + 1)
            start = torch.zeros(size, dtype=torch.float64, device=data.features.device)
        loss = ProbeLoss(data, l2=l2)
        return minimize(
            loss,
            start,
            precondition=loss.precondition,
            tolerance=tolerance or self.tolerance,
            max_iterations=self.max_iterations,
        )


def validation_splits(
    data: LabelledFeatures, val: LabelledFeatures | None, folds: int
) -> list[Split]:
    """The splits by which strengths are compared: the validation samples, else folds of `data`."""
    if val:
        return [(data, val)]
    all_folds = stratified_folds(data.labels, folds)
    used = all_folds if len(data.labels) < ONE_FOLD_SAMPLES else all_folds[:1]
    return [data.split(*fold) for fold in used]


def search_l2(
    solver: Solver, splits: Sequence[Split], path: Sequence[float]
) -> tuple[list[Trial], Minimum]:
    """Fit each strength on each split, until the loss on validation samples stops improving.

    Each fit starts from the solution of the stronger strength before it.

    Args:
        solver: Makes the fits.
        splits: Samples to fit and samples to validate.
        path: The strengths to try, the strongest first.

    Returns:
        The trials, and the first split's solution for the best strength.
    """
    trials: list[Trial] = []
    solutions: list[Minimum] = []
    starts: list[Tensor | None] = [None] * len(splits)
    tolerance = max(solver.tolerance, SEARCH_TOLERANCE)
    for l2 in path:
        pairs = zip(splits, starts, strict=True)
        fits = [solver.fit(data, l2, start, tolerance) for (data, _), start in pairs]
        starts = [fit.x for fit in fits]
        solutions.append(fits[0])
        scores = [val.score(fit.x) for (_, val), fit in zip(splits, fits, strict=True)]
        loss, accuracy = _weighted_mean(scores, [val.total_weight for _, val in splits])
        trials.append(Trial(l2=l2, loss=loss, accuracy=accuracy))
        if has_stopped_improving([trial.loss for trial in trials]):
            break
    return trials, solutions[trials.index(best_trial(trials))]


def best_trial(trials: Sequence[Trial]) -> Trial:
    """The trial with the least loss; of equals the first, which has the strongest L2."""
    return min(trials, key=lambda trial: trial.loss)


def has_stopped_improving(losses: Sequence[float], patience: int = PATIENCE) -> bool:
    """Whether none of the last `patience` losses is below the best one before them.

    >>> has_stopped_improving([0.9, 0.5, 0.6]), has_stopped_improving([0.9, 0.5, 0.6, 0.5])
    (False, True)
    """
    return len(losses) - 1 - losses.index(min(losses)) >= patience


def _weighted_mean(
    scores: Sequence[tuple[float, float]], weights: Sequence[float]
) -> tuple[float, float]:
    total = sum(weights)
    pairs = list(zip(scores, weights, strict=True))
    loss, accuracy = (sum(score[i] * weight for score, weight in pairs) / total for i in range(2))
    return loss, accuracy

"""The loss of a linear layer on standardized features: its value, gradient and preconditioner."""

import math
from functools import cache, cached_property

import torch
from torch import Tensor

from lit_finetune.probe.criterion import Criterion
from lit_finetune.probe.score import mean_scores
from lit_finetune.probe.standardize import StandardScaler, in_chunks

PRECONDITIONER_ROWS = 4
"""Samples per feature from which the preconditioner is estimated; more do not save steps."""


class LabelledFeatures:
    """Features (N, D) with labels, (N) or (N, C), their scaler and their criterion."""

    def __init__(
        self, features: Tensor, labels: Tensor, *, scaler: StandardScaler, criterion: Criterion
    ) -> None:
        self.features, self.labels = features, labels
        self.scaler, self.criterion = scaler, criterion
        self.total_weight = criterion.total_weight(labels)

    def with_samples(self, features: Tensor, labels: Tensor) -> "LabelledFeatures":
        """Other samples with the same scaler and criterion."""
        return LabelledFeatures(features, labels, scaler=self.scaler, criterion=self.criterion)

    def split(self, train: Tensor, val: Tensor) -> tuple["LabelledFeatures", "LabelledFeatures"]:
        """The samples with these indices: those to fit, and those to validate."""
        parts = [indices.to(self.features.device) for indices in (train, val)]
        one, other = (self.with_samples(self.features[p], self.labels[p]) for p in parts)
        return one, other

    def score(self, solution: Tensor) -> tuple[float, float]:
        """The mean loss and the accuracy of weights and biases (C, D + 1)."""
        folded = self.scaler.fold(solution)

        def logits(features: Tensor) -> Tensor:
            return features.double() @ folded[:, :-1].T + folded[:, -1]

        return mean_scores(self.criterion, logits, self.features, self.labels)

    @cached_property
    def second_moment(self) -> Tensor:
        """Of standardized features and a 1 (D + 1, D + 1), estimated from some of the samples."""
        stride = max(1, len(self.features) // (PRECONDITIONER_ROWS * self.features.shape[1]))
        rows = self.scaler.transform(self.features[::stride])
        rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
        return rows.T @ rows / len(rows)


class ProbeLoss:
    """The mean loss over samples as a function of weights and biases (C, D + 1).

    Args:
        data: The samples.
        l2: Half of this times the sum of all squared weights, on standardized features, is added;
            biases are not penalized.
    """

    def __init__(self, data: LabelledFeatures, *, l2: float) -> None:
        self._data, self._l2 = data, l2
        self._curvature = 1.0
        self._cholesky = cache(self._make_cholesky)

    def __call__(self, solution: Tensor) -> tuple[float, Tensor]:
        """The loss, and its gradient (C, D + 1)."""
        data, scaler = self._data, self._data.scaler
        folded = scaler.fold(solution)
        gradient = torch.zeros_like(solution)
        loss, curvature = torch.zeros(2, dtype=torch.float64, device=solution.device)
        for features, labels in in_chunks(data.features, data.labels):
            rows = features.double()
            logits = rows @ folded[:, :-1].T + folded[:, -1]
            value, logits_gradient, logits_curvature = data.criterion(logits, labels)
            loss, curvature = loss + value, curvature + logits_curvature
            gradient[:, :-1] += logits_gradient.T @ rows
            gradient[:, -1] += logits_gradient.sum(dim=0)
        gradient[:, :-1] -= gradient[:, -1:] * scaler.mean
        gradient[:, :-1] *= scaler.inverse_std
        gradient /= data.total_weight
        gradient[:, :-1] += self._l2 * solution[:, :-1]
        self._curvature = float(curvature) / data.total_weight
        penalty = self._l2 / 2 * float(solution[:, :-1].square().sum())
        return float(loss) / data.total_weight + penalty, gradient

    def precondition(self, gradient: Tensor) -> Tensor:
        """The gradient times an approximate inverse Hessian, with one curvature for all samples."""
        # The curvature is rounded to a power of 2, so that few matrices are factorized.
        exponent = round(math.log2(max(self._curvature, 1e-12)))
        return torch.cholesky_solve(gradient.T, self._cholesky(exponent)).T

    def _make_cholesky(self, exponent: int) -> Tensor:
        hessian = self._data.second_moment * 2.0**exponent
        hessian.diagonal()[:-1] += self._l2
        hessian.diagonal()[-1] += 1e-12
        return torch.linalg.cholesky(hessian)

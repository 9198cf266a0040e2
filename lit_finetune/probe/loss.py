"""The loss of a linear layer on standardised features: its value, its gradient, its curvature."""

import math
from functools import cache, cached_property

import torch
from torch import Tensor

from lit_finetune.probe.criterion import Criterion
from lit_finetune.probe.standardize import Scaling, in_chunks

METRIC_ROWS = 4
"""Samples for each feature from which the metric is estimated; more do not save steps."""


class LabelledFeatures:
    """Features (N, D) with labels, (N) or (N, C), how to scale them and what they are judged by."""

    def __init__(
        self, features: Tensor, labels: Tensor, *, scaling: Scaling, criterion: Criterion
    ) -> None:
        self.features, self.labels = features, labels
        self.scaling, self.criterion = scaling, criterion
        self.total = criterion.total(labels)

    def like(self, features: Tensor, labels: Tensor) -> "LabelledFeatures":
        """Other samples, scaled and judged as these."""
        return LabelledFeatures(features, labels, scaling=self.scaling, criterion=self.criterion)

    def split(self, fitted: Tensor, held: Tensor) -> tuple["LabelledFeatures", "LabelledFeatures"]:
        """The samples of these indices, and of those."""
        parts = [indices.to(self.features.device) for indices in (fitted, held)]
        one, other = (self.like(self.features[part], self.labels[part]) for part in parts)
        return one, other

    def score(self, solution: Tensor) -> tuple[float, float]:
        """The mean loss and the share that is right, under weights and biases (C, D + 1)."""
        folded = self.scaling.fold(solution)
        loss, right, answers = 0.0, 0, 0
        for features, labels in in_chunks(self.features, self.labels):
            logits = features.double() @ folded[:, :-1].T + folded[:, -1]
            loss += float(self.criterion(logits, labels)[0])
            hits = logits.argmax(dim=1) == labels if labels.dim() == 1 else (logits > 0) == labels
            right, answers = right + int(hits.sum()), answers + hits.numel()
        return loss / self.total, right / answers

    @cached_property
    def second_moment(self) -> Tensor:
        """Of standard features with a 1 behind them (D + 1, D + 1), from some of the samples."""
        stride = max(1, len(self.features) // (METRIC_ROWS * self.features.shape[1]))
        rows = self.scaling.apply(self.features[::stride])
        rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
        return rows.T @ rows / len(rows)


class ProbeLoss:
    """The mean loss over samples as a function of weights and biases (C, D + 1).

    Args:
        data: The samples.
        l2: Half of this times the sum of all squared weights, on standard features, is added;
            biases are free.
    """

    def __init__(self, data: LabelledFeatures, *, l2: float) -> None:
        self._data, self._l2 = data, l2
        self._curvature = 1.0
        self._factor = cache(self._make_factor)

    def __call__(self, solution: Tensor) -> tuple[float, Tensor]:
        """The loss, and its gradient (C, D + 1)."""
        scaling = self._data.scaling
        folded = scaling.fold(solution)
        gradient = torch.zeros_like(solution)
        loss, curvature = torch.zeros(2, dtype=torch.float64, device=solution.device)
        for features, labels in in_chunks(self._data.features, self._data.labels):
            rows = features.double()
            logits = rows @ folded[:, :-1].T + folded[:, -1]
            value, by_logits, curved = self._data.criterion(logits, labels)
            loss, curvature = loss + value, curvature + curved
            gradient[:, :-1] += by_logits.T @ rows
            gradient[:, -1] += by_logits.sum(dim=0)
        gradient[:, :-1] -= gradient[:, -1:] * scaling.centre
        gradient[:, :-1] *= scaling.factor
        gradient /= self._data.total
        gradient[:, :-1] += self._l2 * solution[:, :-1]
        self._curvature = float(curvature) / self._data.total
        penalty = self._l2 / 2 * float(solution[:, :-1].square().sum())
        return float(loss) / self._data.total + penalty, gradient

    def precondition(self, gradient: Tensor) -> Tensor:
        """The gradient in the metric of the loss, as if all samples were equally uncertain."""
        # In powers of 2, so that few of them are ever factorised.
        exponent = round(math.log2(max(self._curvature, 1e-12)))
        return torch.cholesky_solve(gradient.T, self._factor(exponent)).T

    def _make_factor(self, exponent: int) -> Tensor:
        metric = self._data.second_moment * 2.0**exponent
        metric.diagonal()[:-1] += self._l2
        metric.diagonal()[-1] += 1e-12
        return torch.linalg.cholesky(metric)

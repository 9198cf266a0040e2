"""Standardize features chunk by chunk, and fold the standardization into a linear head."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK_ROWS = 512
"""Rows that are computed at a time: their results stay in the processor's cache."""
ROUNDING = 1e-6
"""A feature is constant if its deviation is at most this share of its largest value."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StandardScaler:
    """Shifts and scales features to mean 0 and standard deviation 1."""

    mean: Tensor
    """The mean of each feature (D), in float64."""
    inverse_std: Tensor
    """One over the standard deviation of each feature (D); 0 for a constant feature."""

    def transform(self, features: Tensor) -> Tensor:
        """Standardized features (N, D), in float64."""
        return (features.double() - self.mean) * self.inverse_std

    def fold(self, solution: Tensor) -> Tensor:
        """Weights and biases (C, D + 1) for plain features, from those for standardized ones."""
        weight = solution[:, :-1] * self.inverse_std
        bias = solution[:, -1] - weight @ self.mean
        return torch.cat([weight, bias[:, None]], dim=1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FeatureSpace:
    """The space in which a head is fitted.

    Of fewer samples than features, only the span of the samples matters: the best weights under L2
    lie in it, and an orthonormal basis keeps their length. So the problem has N dimensions, not D.
    """

    scaler: StandardScaler
    """Of the plain features."""
    basis: Tensor | None
    """An orthonormal basis of the samples' span (D, N); None if N is not smaller than D."""

    @property
    def inner_scaler(self) -> StandardScaler:
        """Of the projected features: without a basis these are the plain features."""
        if self.basis is None:
            return self.scaler
        ones = self.basis.new_ones(self.basis.shape[1])
        return StandardScaler(mean=torch.zeros_like(ones), inverse_std=ones)

    def project(self, features: Tensor) -> Tensor:
        """Plain features (N, D) in this space."""
        return features if self.basis is None else self.scaler.transform(features) @ self.basis

    def fold(self, solution: Tensor) -> Tensor:
        """Weights and biases for plain features, from those for standardized ones in this space."""
        if self.basis is not None:
            solution = torch.cat([solution[:, :-1] @ self.basis.T, solution[:, -1:]], dim=1)
        return self.scaler.fold(solution)


def make_feature_space(features: Tensor) -> FeatureSpace:
    """The space in which a head for these features (N, D) is fitted."""
    scaler = fit_scaler(features)
    is_wide = features.shape[0] < features.shape[1]
    basis = torch.linalg.qr(scaler.transform(features).T).Q if is_wide else None
    return FeatureSpace(scaler=scaler, basis=basis)


def fit_scaler(features: Tensor) -> StandardScaler:
    """The mean and the standard deviation of features (N, D), computed in float64.

    >>> fit_scaler(torch.tensor([[1.0, 7.0], [3.0, 7.0]])).inverse_std
    tensor([1., 0.], dtype=torch.float64)
    """
    total = features.new_zeros(features.shape[1], dtype=torch.float64)
    squares, largest = total.clone(), total.clone()
    for (rows,) in in_chunks(features):
        total += rows.double().sum(dim=0)
        largest = torch.maximum(largest, rows.double().abs().amax(dim=0))
    mean = total / len(features)
    for (rows,) in in_chunks(features):
        squares += (rows.double() - mean).square().sum(dim=0)
    std = (squares / len(features)).sqrt()
    varies = std > ROUNDING * largest
    return StandardScaler(
        mean=mean, inverse_std=torch.where(varies, 1 / std, torch.zeros_like(std))
    )


def in_chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same rows of all tensors, `CHUNK_ROWS` at a time, in order."""
    for start in range(0, len(tensors[0]), CHUNK_ROWS):
        yield tuple(tensor[start : start + CHUNK_ROWS] for tensor in tensors)

"""Features of mean 0 and deviation 1, without a copy of them; and back to plain ones."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 512
"""Rows at a time: what comes of them stays in the processor's cache."""
ROUNDING = 1e-6
"""A deviation of this share of a feature's largest value is but the rounding of the value."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scaling:
    """What makes features standard."""

    centre: Tensor
    """Of each feature (D), in float64."""
    factor: Tensor
    """One over each feature's deviation (D); 0 for a feature that never varies."""

    def apply(self, features: Tensor) -> Tensor:
        """Standard features (N, D), in float64."""
        return (features.double() - self.centre) * self.factor

    def fold(self, solution: Tensor) -> Tensor:
        """Weights and biases (C, D + 1) on plain features, of those on standard ones."""
        weight = solution[:, :-1] * self.factor
        bias = solution[:, -1] - weight @ self.centre
        return torch.cat([weight, bias[:, None]], dim=1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Space:
    """Where a head is fitted: of fewer samples than features only the span of the samples counts.

    The best weights under L2 lie in that span, and turning it changes no length.
    """

    outer: Scaling
    """Of the features as they are."""
    turn: Tensor | None
    """An orthonormal basis of the samples' span (D, N); None where there are more samples."""

    @property
    def inner(self) -> Scaling:
        """Of the features in this space."""
        if self.turn is None:
            return self.outer
        ones = self.turn.new_ones(self.turn.shape[1])
        return Scaling(centre=torch.zeros_like(ones), factor=ones)

    def enter(self, features: Tensor) -> Tensor:
        """Features as they are in this space."""
        return features if self.turn is None else self.outer.apply(features) @ self.turn

    def leave(self, solution: Tensor) -> Tensor:
        """Weights and biases on plain features, of those on standard ones in this space."""
        if self.turn is not None:
            solution = torch.cat([solution[:, :-1] @ self.turn.T, solution[:, -1:]], dim=1)
        return self.outer.fold(solution)


def make_space(features: Tensor) -> Space:
    """The space in which a head for these features (N, D) is fitted."""
    outer = measure(features)
    few = features.shape[0] < features.shape[1]
    turn = torch.linalg.qr(outer.apply(features).T).Q if few else None
    return Space(outer=outer, turn=turn)


def measure(features: Tensor) -> Scaling:
    """The mean and the deviation of features (N, D), both found in float64.

    >>> measure(torch.tensor([[1.0, 7.0], [3.0, 7.0]])).factor
    tensor([1., 0.], dtype=torch.float64)
    """
    total = features.new_zeros(features.shape[1], dtype=torch.float64)
    squares, largest = total.clone(), total.clone()
    for (rows,) in in_chunks(features):
        total += rows.double().sum(dim=0)
        largest = torch.maximum(largest, rows.double().abs().amax(dim=0))
    centre = total / len(features)
    for (rows,) in in_chunks(features):
        squares += (rows.double() - centre).square().sum(dim=0)
    deviation = (squares / len(features)).sqrt()
    varies = deviation > ROUNDING * largest
    factor = torch.where(varies, 1 / deviation, torch.zeros_like(deviation))
    return Scaling(centre=centre, factor=factor)


def in_chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Some rows of all these tensors at a time, in order."""
    for begin in range(0, len(tensors[0]), CHUNK):
        yield tuple(tensor[begin : begin + CHUNK] for tensor in tensors)

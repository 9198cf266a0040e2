"""Find the minimum of a smooth convex function, in few evaluations."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

SUFFICIENT = 1e-4
"""The share of the promised decrease that a step must bring (Armijo)."""
SHORTEST_STEP = 1e-10


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Minimum:
    """Where a minimisation ended."""

    x: Tensor
    value: float
    iterations: int
    converged: bool
    """Whether the next step promised less than the tolerance."""


def minimise(
    function: Callable[[Tensor], tuple[float, Tensor]],
    start: Tensor,
    *,
    precondition: Callable[[Tensor], Tensor],
    tolerance: float,
    max_iterations: int,
    memory: int = 10,
) -> Minimum:
    """Minimise by L-BFGS (Liu and Nocedal, 1989) in a metric near that of the curvature.

    Nothing is drawn at random, and nothing is measured in time: equal input gives equal bits.

    >>> def bowl(x):
    ...     return float((x - 3).square().sum()), 2 * (x - 3)
    >>> found = minimise(
    ...     bowl, torch.zeros(2), precondition=torch.clone, tolerance=1e-9, max_iterations=20
    ... )
    >>> found.x, found.converged
    (tensor([3., 3.]), True)

    Args:
        function: The value and the gradient at a point; strictly convex.
        start: Where to begin.
        precondition: A gradient times the inverse of something near the curvature. The nearer it
            comes, the fewer steps are needed; the minimum is the same.
        tolerance: Enough is when the gradient, in that metric, promises to lower the value by less.
        max_iterations: The most steps.
        memory: How many steps tell of the curvature.
    """
    x, (value, gradient) = start, function(start)
    pairs: deque[tuple[Tensor, Tensor]] = deque(maxlen=memory)
    for iteration in range(max_iterations):
        direction = _direction(gradient, pairs, precondition)
        slope = float((gradient * direction).sum())
        if -slope / 2 <= tolerance:
            return Minimum(x=x, value=value, iterations=iteration, converged=True)
        step, (new_value, new_gradient) = 1.0, function(x + direction)
        while not new_value <= value + SUFFICIENT * step * slope:
            step /= 2
            if step < SHORTEST_STEP:  # rounding hides what is left to gain
                return Minimum(x=x, value=value, iterations=iteration, converged=False)
            new_value, new_gradient = function(x + step * direction)
        pairs.append((step * direction, new_gradient - gradient))
        x, value, gradient = x + step * direction, new_value, new_gradient
    return Minimum(x=x, value=value, iterations=max_iterations, converged=False)


def _direction(
    gradient: Tensor,
    pairs: deque[tuple[Tensor, Tensor]],
    precondition: Callable[[Tensor], Tensor],
) -> Tensor:
    """Downhill, by the two loops of L-BFGS over the last steps and what they did to the gradient.

    The curvature along each step is positive, for the function is strictly convex.
    """
    rest, shares = gradient.clone(), []
    for moved, change in reversed(pairs):
        shares.append(torch.sum(moved * rest) / torch.sum(moved * change))
        rest -= shares[-1] * change
    direction = precondition(rest)
    if pairs:
        moved, change = pairs[-1]
        direction = direction * (moved * change).sum() / (change * precondition(change)).sum()
    for (moved, change), share in zip(pairs, reversed(shares), strict=True):
        back = torch.sum(change * direction) / torch.sum(moved * change)
        direction = direction + (share - back) * moved
    return -direction

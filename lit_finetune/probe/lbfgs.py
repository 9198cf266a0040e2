"""Minimize a smooth, strictly convex function in few evaluations."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

SUFFICIENT_DECREASE = 1e-4
"""The share of the predicted decrease that a step must bring (Armijo)."""
MIN_STEP = 1e-10


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Minimum:
    """The result of a minimization."""

    x: Tensor
    value: float
    iterations: int
    converged: bool
    """Whether the predicted decrease of the next step was within the tolerance."""


def minimize(
    function: Callable[[Tensor], tuple[float, Tensor]],
    start: Tensor,
    *,
    precondition: Callable[[Tensor], Tensor],
    tolerance: float,
    max_iterations: int,
    history_size: int = 10,
) -> Minimum:
    """Minimize by preconditioned L-BFGS (Liu and Nocedal, 1989).

    Nothing depends on random numbers or on time: equal input gives equal bits.

    >>> def bowl(x):
    ...     return float((x - 3).square().sum()), 2 * (x - 3)
    >>> minimum = minimize(
    ...     bowl, torch.zeros(2), precondition=torch.clone, tolerance=1e-9, max_iterations=20
    ... )
    >>> minimum.x, minimum.converged
    (tensor([3., 3.]), True)

    Args:
        function: From a point to the value and the gradient; strictly convex.
        start: The first point.
        precondition: Multiplies a gradient by an approximate inverse of the Hessian. A better
            approximation saves steps and does not change the minimum.
        tolerance: Stop when the predicted decrease of the value is not larger.
        max_iterations: The largest number of steps.
        history_size: The number of last steps from which the curvature is estimated.
    """
    x, (value, gradient) = start, function(start)
    history: deque[tuple[Tensor, Tensor]] = deque(maxlen=history_size)
    for iteration in range(max_iterations):
        direction = _direction(gradient, history, precondition)
        slope = float((gradient * direction).sum())
        if -slope / 2 <= tolerance:
            return Minimum(x=x, value=value, iterations=iteration, converged=True)
        step, (new_value, new_gradient) = 1.0, function(x + direction)
        while not new_value <= value + SUFFICIENT_DECREASE * step * slope:
            step /= 2
            if step < MIN_STEP:  # rounding hides the remaining decrease
                return Minimum(x=x, value=value, iterations=iteration, converged=False)
            new_value, new_gradient = function(x + step * direction)
        history.append((step * direction, new_gradient - gradient))
        x, value, gradient = x + step * direction, new_value, new_gradient
    return Minimum(x=x, value=value, iterations=max_iterations, converged=False)


def _direction(
    gradient: Tensor,
    history: deque[tuple[Tensor, Tensor]],
    precondition: Callable[[Tensor], Tensor],
) -> Tensor:
    """The descent direction, by the two-loop recursion over the last steps and gradient changes.

    The curvature along each step is positive because the function is strictly convex.
    """
    residual, alphas = gradient.clone(), []
    for step, change in reversed(history):
        alphas.append(torch.sum(step * residual) / torch.sum(step * change))
        residual -= alphas[-1] * change
    direction = precondition(residual)
    if history:
        step, change = history[-1]
        direction = direction * (step * change).sum() / (change * precondition(change)).sum()
    for (step, change), alpha in zip(history, reversed(alphas), strict=True):
        beta = torch.sum(change * direction) / torch.sum(step * change)
        direction = direction + (alpha - beta) * step
    return -direction

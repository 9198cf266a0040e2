"""Fit a network's linear head to features, so that the network gives the logits of the fit."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lit_finetune.head_search import Layer
from lit_finetune.probe import ProbeFit, fit_linear_probe

Features = tuple[Tensor, Tensor]
"""Of pictures, with their labels."""


def fit_head(
    train: Features, val: Features | None, *, rectifies: bool, device: torch.device, **options: Any
) -> ProbeFit:
    """Fit a head to what `HeadFeatures` gave.

    Args:
        train: Of the pictures to fit.
        val: Of those to choose the strength of L2 by, if there are any.
        rectifies: Whether a ReLU follows the head; a bias then keeps all logits of these pictures
            above 0, which changes no probability.
        device: Where to compute, if that is a GPU.
        options: Of `fit_linear_probe`.

    Raises:
        ValueError: No head can be fitted to them.
    """
    parts = [train] if val is None else [train, val]
    if rectifies and train[1].dim() == 2:
        raise ValueError(
            "A ReLU follows the head, so that no logit is below 0: a linear probe of classes that"
            " are fitted one by one cannot be put into it. Let the head train in epochs of its own."
        )
    means = [features.chunk(3, dim=1)[0] if rectifies else features for features, _ in parts]
    if device.type == "cuda":
        means = [mean.to(device) for mean in means]
    if val is not None:
        options.update(val_features=means[1], val_labels=val[1])
    fit = fit_linear_probe(means[0], train[1], **options)
    if not rectifies:
        return fit
    extremes = torch.cat([features[:, means[0].shape[1] :] for features, _ in parts])
    return replace(fit, bias=fit.bias + lift(fit.weight, fit.bias, extremes))


def lift(weight: Tensor, bias: Tensor, extremes: Tensor) -> float:
    """How much to add to all biases so that a ReLU behind a linear head changes nothing.

    Probabilities stay the same under it: they depend on the differences of logits alone.

    >>> extremes = torch.tensor([[0.0, 0.0, 3.0, 1.0]])
    >>> lift(torch.tensor([[1.0, -2.0]]), torch.tensor([0.5]), extremes)
    1.5

    Args:
        weight: Of the head (C, D).
        bias: Of the head (C).
        extremes: Each feature's lowest and highest value over the places of each picture (N, 2 D).
    """
    lowest, highest = extremes.type(weight.dtype).chunk(2, dim=1)
    least = lowest @ weight.clamp(min=0).T + highest @ weight.clamp(max=0).T
    return max(0.0, -float((least + bias).min()))


@torch.no_grad()
def set_head(head: Layer, weight: Tensor, bias: Tensor) -> None:
    """Give a linear head weights (C, D) and a bias (C), in place."""
    head.weight.copy_(weight.reshape(head.weight.shape))
    assert head.bias is not None, "`linear_head` has made sure"
    head.bias.copy_(bias)

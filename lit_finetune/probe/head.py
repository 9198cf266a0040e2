"""Fit a network's linear head to features, so that the network gives the logits of the fit."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lit_finetune.heads.find import Layer
from lit_finetune.heads.usage import find_head_use
from lit_finetune.modules.outputs import logits_of
from lit_finetune.probe.criterion import ClassWeights, make_criterion
from lit_finetune.probe.fit import ProbeFit, fit_linear_probe
from lit_finetune.probe.standardize import in_chunks

Features = tuple[Tensor, Tensor]
"""Of pictures, with their labels."""


def fit_head(
    train: Features,
    val: Features | None,
    *,
    applies_relu: bool,
    device: torch.device,
    **options: Any,
) -> ProbeFit:
    """Fit a head to what `HeadFeatures` gave.

    Args:
        train: Of the pictures to fit.
        val: Of those to choose the strength of L2 by, if there are any.
        applies_relu: Whether a ReLU follows the head; a bias then keeps all logits of these images
            above 0, which changes no probability.
        device: Where to compute, if that is a GPU.
        options: Of `fit_linear_probe`.

    Raises:
        ValueError: No head can be fitted to them.
    """
    parts = [train] if val is None else [train, val]
    if applies_relu and train[1].dim() == 2:
        raise ValueError(
            "A ReLU follows the head, so that no logit is below 0: a linear probe of classes that"
            " are fitted one by one cannot be put into it. Let the head train in epochs of its own."
        )
    means = [features.chunk(3, dim=1)[0] if applies_relu else features for features, _ in parts]
    if device.type == "cuda":
        means = [mean.to(device) for mean in means]
    if val is not None:
        options.update(val_features=means[1], val_labels=val[1])
    fit = fit_linear_probe(means[0], train[1], **options)
    if not applies_relu:
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


@torch.no_grad()
def set_and_compare(
    network: nn.Module,
    head: Layer,
    fit: ProbeFit,
    batches: list[tuple[Tensor, Tensor]],
    *,
    head_name: str,
    scale: float,
) -> str | None:
    """Give a network the head of a fit, unless its logits then differ from those of the fit.

    Args:
        network: In eval mode, in the precision of the run.
        head: Its head.
        fit: What was found.
        batches: Pictures, and what goes into the head for each (N, D).
        head_name: Of the head.
        scale: The largest score, of either sign, that the fit gives to any picture.

    Returns:
        Why the head is as it was before; None if it is that of the fit.
    """
    assert head.bias is not None, "`linear_head` has made sure"
    before = head.weight.clone(), head.bias.clone()
    set_head(head, fit.weight, fit.bias)
    problem = None
    for images, features in batches:
        expected = fit.logits(features)
        logits = logits_of(network(images.clone()))
        found = logits.double().cpu()
        exact = logits.dtype.itemsize >= 4 and logits.device.type == "cpu"
        within = (1e-3 if exact else 5e-2) * float(expected.max() - expected.min()) + 1e-3
        if found.shape != expected.shape or not bool(((found - expected).abs() <= within).all()):
            problem = (
                "on real pictures its logits are not those of the linear layer that was fitted"
            )
    if problem is None:
        try:  # no picture here need have the largest score
            find_head_use(network, head_name, batches[0][0][:2], scale=max(1.0, scale))
        except ValueError as error:
            problem = str(error)
    if problem is not None:
        set_head(head, *before)
    return problem


@torch.no_grad()
def scored(
    fit: ProbeFit,
    logits: Callable[[Tensor], Tensor],
    train: Features,
    val: Features | None,
    *,
    class_weights: ClassWeights,
    label_smoothing: float,
) -> ProbeFit:
    """A fit with the losses and accuracies of the logits that the network itself gives.

    Args:
        fit: What was found, in double precision.
        logits: From features (N, D) to logits as the network computes them.
        train: What was fitted.
        val: What it was chosen by, if there is any.
        class_weights: Those of the fit.
        label_smoothing: That of the fit.
    """
    criterion = make_criterion(train[1], len(fit.bias), class_weights, label_smoothing)

    def score(data: Features) -> tuple[float, float]:
        total, right, answers = 0.0, 0, 0
        for features, labels in in_chunks(data[0][:, : fit.weight.shape[1]], data[1]):
            found = logits(features).double().cpu()
            target = labels.long() if labels.dim() == 1 else labels
            total += float(criterion(found, target)[0])
            hits = found.argmax(dim=1) == labels if labels.dim() == 1 else (found > 0) == labels
            right, answers = right + int(hits.sum()), answers + hits.numel()
        return total / criterion.total(data[1].long()), right / answers

    fitted = score(train)
    held = (None, None) if val is None else score(val)
    return replace(fit, loss=fitted[0], accuracy=fitted[1], val_loss=held[0], val_accuracy=held[1])


def largest_score(fit: ProbeFit, parts: list[Features | None]) -> float:
    """The largest score, of either sign, that a fit gives to any of these pictures."""
    width = fit.weight.shape[1]
    return max(float(fit.logits(part[0][:, :width]).abs().max()) for part in parts if part)

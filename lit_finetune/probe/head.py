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
from lit_finetune.probe.score import mean_scores

Features = tuple[Tensor, Tensor]
"""The features of images, and their labels."""


def fit_head(
    train: Features,
    val: Features | None,
    *,
    applies_relu: bool,
    device: torch.device,
    **options: Any,
) -> ProbeFit:
    """Fit a head to the output of `HeadFeatures`.

    Args:
        train: The images to fit.
        val: The images to choose the strength of L2 by; None for cross-validation.
        applies_relu: Whether a ReLU follows the head. Then a constant is added to the bias that
            keeps all logits of these images above 0 and changes no probability.
        device: Where to compute if it is a GPU; the CPU otherwise.
        options: Passed to `fit_linear_probe`.

    Raises:
        ValueError: No head can be fitted to these features.
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
    return replace(fit, bias=fit.bias + relu_offset(fit.weight, fit.bias, extremes))


def relu_offset(weight: Tensor, bias: Tensor, extremes: Tensor) -> float:
    """The constant to add to all biases so that a ReLU after a linear head changes nothing.

    It changes no probability, because the softmax depends only on the differences of logits.

    >>> extremes = torch.tensor([[0.0, 0.0, 3.0, 1.0]])
    >>> relu_offset(torch.tensor([[1.0, -2.0]]), torch.tensor([0.5]), extremes)
    1.5

    Args:
        weight: Of the head (C, D).
        bias: Of the head (C).
        extremes: Each feature's minimum and maximum over the positions of each image (N, 2 D).
    """
    low, high = extremes.type(weight.dtype).chunk(2, dim=1)
    bounds = low @ weight.clamp(min=0).T + high @ weight.clamp(max=0).T
    return max(0.0, -float((bounds + bias).min()))


@torch.no_grad()
def set_head(head: Layer, weight: Tensor, bias: Tensor) -> None:
    """Give a linear head weights (C, D) and a bias (C), in place."""
    head.weight.copy_(weight.reshape(head.weight.shape))
    assert head.bias is not None, "`linear_head` refuses heads without a bias"
    head.bias.copy_(bias)


@torch.no_grad()
def set_and_compare(
    network: nn.Module,
    head: Layer,
    fit: ProbeFit,
    batches: list[tuple[Tensor, Tensor]],
    *,
    head_name: str,
    max_logit: float,
) -> str | None:
    """Give a network the head of a fit, and undo this if its logits differ from those of the fit.

    Args:
        network: In eval mode, in the precision of the run.
        head: Its head.
        fit: The head to set.
        batches: Images, and the features (N, D) that enter the head for them.
        head_name: The name of the head.
        max_logit: The largest absolute logit of the fit for any image.

    Returns:
        Why the head was left unchanged; None if it was set.
    """
    assert head.bias is not None, "`linear_head` refuses heads without a bias"
    before = head.weight.clone(), head.bias.clone()
    set_head(head, fit.weight, fit.bias)
    problem = None
    for images, features in batches:
        logits = logits_of(network(images.clone()))
        if not _is_close(logits, fit.logits(features)):
            problem = (
                "the network's logits on real pictures are not those of the fitted linear layer"
            )
    if problem is None:
        try:  # these batches need not contain the largest logit
            find_head_use(network, head_name, batches[0][0][:2], scale=max(1.0, max_logit))
        except ValueError as error:
            problem = str(error)
    if problem is not None:
        set_head(head, *before)
    return problem


def _is_close(logits: Tensor, expected: Tensor) -> bool:
    """Whether a network's logits equal those of a fit (float64), up to the rounding of the network.

    >>> expected = torch.tensor([[0.0, 10.0]], dtype=torch.float64)
    >>> _is_close(torch.tensor([[0.2, 10.0]]), expected)
    False
    >>> _is_close(torch.tensor([[0.2, 10.0]], dtype=torch.bfloat16), expected)
    True
    """
    is_exact = logits.dtype.itemsize >= 4 and logits.device.type == "cpu"
    tolerance = (1e-3 if is_exact else 5e-2) * float(expected.max() - expected.min()) + 1e-3
    output = logits.double().cpu()
    return output.shape == expected.shape and bool(((output - expected).abs() <= tolerance).all())


@torch.no_grad()
def with_scores(
    fit: ProbeFit,
    logits: Callable[[Tensor], Tensor],
    train: Features,
    val: Features | None,
    *,
    class_weights: ClassWeights,
    label_smoothing: float,
) -> ProbeFit:
    """A fit with the losses and accuracies of the logits in the network's own precision.

    Args:
        fit: The head, fitted in double precision.
        logits: From features (N, D) to logits, as the network computes them.
        train: The fitted samples.
        val: The validation samples; None if there are none.
        class_weights: Those of the fit.
        label_smoothing: That of the fit.
    """
    criterion = make_criterion(train[1], len(fit.bias), class_weights, label_smoothing)
    width = fit.weight.shape[1]

    def score(features: Tensor, labels: Tensor) -> tuple[float, float]:
        labels = labels.long() if labels.dim() == 1 else labels
        return mean_scores(
            criterion, lambda rows: logits(rows).double().cpu(), features[:, :width], labels
        )

    loss, accuracy = score(*train)
    val_loss, val_accuracy = (None, None) if val is None else score(*val)
    return replace(fit, loss=loss, accuracy=accuracy, val_loss=val_loss, val_accuracy=val_accuracy)


def max_abs_logit(fit: ProbeFit, parts: list[Features | None]) -> float:
    """The largest absolute logit of a fit for any of these images."""
    width = fit.weight.shape[1]
    return max(float(fit.logits(part[0][:, :width]).abs().max()) for part in parts if part)

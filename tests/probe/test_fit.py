"""A linear probe is the one optimum of what it says it minimises."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lit_finetune import ProbeFit, fit_linear_probe
from lit_finetune.probe.folds import stratified_folds

WEIGHTS = [2.0, 0.5, 1.0]


def samples(
    num: int = 150, width: int = 12, num_classes: int = 3, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Correlated features of very different sizes, far from 0, whose classes overlap."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num) % num_classes
    centres = torch.randn(num_classes, width, generator=torch.Generator().manual_seed(9))
    features = centres[labels] + 1.5 * torch.randn(num, width, generator=generator)
    features[:, 1] += 3 * features[:, 0]
    return features * torch.logspace(-2, 3, width) + 50, labels


def multilabel(labels: Tensor) -> Tensor:
    """Labels (N, C): each sample has its class, and some have the next one too."""
    other = (labels + torch.arange(len(labels)) % 2) % 3
    return functional.one_hot(labels) | functional.one_hot(other)


def objective(
    head: tuple[Tensor, Tensor], features: Tensor, labels: Tensor, l2: float, **options: Any
) -> Tensor:
    """The mean loss as torch has it, and the penalty of weights on standardised features."""
    features = features.double()
    std = features.std(dim=0, correction=0)
    logits = features @ head[0].T + head[1]
    if labels.dim() == 1:
        loss = functional.cross_entropy(logits, labels, **options)
    else:
        smoothing = options.pop("label_smoothing", 0.0)
        target = labels.double() * (1 - smoothing) + smoothing / 2
        per_class = functional.binary_cross_entropy_with_logits(logits, target, **options)
        loss = per_class * labels.shape[1]
    return loss + l2 / 2 * (head[0] * std).square().sum()


def max_gradient(fit: ProbeFit, features: Tensor, labels: Tensor, **options: Any) -> float:
    """How steep the objective is where a fit has ended, on standardised features."""
    weight, bias = fit.weight.clone().requires_grad_(), fit.bias.clone().requires_grad_()
    objective((weight, bias), features, labels, fit.l2, **options).backward()
    assert weight.grad is not None
    assert bias.grad is not None
    std = features.double().std(dim=0, correction=0)
    mean = features.double().mean(dim=0)
    by_weight = (weight.grad - bias.grad[:, None] * mean) / std
    return float(torch.cat([by_weight, bias.grad[:, None]], dim=1).abs().max())


@pytest.mark.parametrize("l2", [1.0, 1e-2, 1e-4])
@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("weights", [None, "balanced"])
def test_its_loss_is_that_of_scikit_learn(l2: float, num_classes: int, weights: Any) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    features, labels = samples(num_classes=num_classes)
    few = (labels == 0) & (torch.arange(len(labels)) > 60)  # so that balancing does something
    features, labels = features[~few], labels[~few]
    counts = torch.bincount(labels).double()
    by_class = len(labels) / (num_classes * counts) if weights else torch.ones_like(counts)
    # Of two classes it has one row of weights: the difference of two that are equal but for sign.
    strength = 2 / l2 if num_classes == 2 else 1 / l2
    theirs = LogisticRegression(
        C=strength / len(labels), tol=1e-10, max_iter=10000, class_weight=weights
    ).fit(StandardScaler().fit_transform(features.double().numpy()), labels.numpy())

    fit = fit_linear_probe(features, labels, l2=l2, class_weights=weights)

    coef, intercept = torch.tensor(theirs.coef_), torch.tensor(theirs.intercept_)
    if num_classes == 2:
        coef, intercept = torch.cat([-coef, coef]) / 2, torch.cat([-intercept, intercept]) / 2
    weight = coef / features.double().std(dim=0, correction=0)
    bias = intercept - weight @ features.double().mean(dim=0)
    options = {"weight": by_class}
    ours = objective((fit.weight, fit.bias), features, labels, l2, **options)
    best = objective((weight, bias), features, labels, l2, **options)
    assert float(ours) == pytest.approx(float(best), abs=1e-6)


@pytest.mark.parametrize("num", [150, 9])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_it_ends_where_torchs_loss_is_level(
    num: int, smoothing: float, weights: Any, kind: torch.dtype
) -> None:
    features, labels = samples(num)
    features = features.type(kind)

    fit = fit_linear_probe(
        features, labels, l2=0.01, class_weights=weights, label_smoothing=smoothing, tolerance=1e-12
    )

    options: dict[str, Any] = {"label_smoothing": smoothing}
    if weights:
        options["weight"] = torch.tensor(weights).double()
    assert fit.converged
    assert max_gradient(fit, features, labels, **options) < 1e-5
    loss = objective((fit.weight, fit.bias), features, labels, 0.0, **options)
    assert fit.loss == pytest.approx(float(loss), rel=1e-9)


@pytest.mark.parametrize("num", [150, 9])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_several_classes_at_once_end_where_torchs_loss_is_level(
    num: int, smoothing: float, weights: Any
) -> None:
    features, labels = samples(num)
    both = multilabel(labels)

    fit = fit_linear_probe(
        features, both, l2=0.01, class_weights=weights, label_smoothing=smoothing, tolerance=1e-12
    )

    options: dict[str, Any] = {"label_smoothing": smoothing}
    if weights:
        options["weight"] = torch.tensor(weights).double()
    assert max_gradient(fit, features, both, **options) < 1e-5
    right = (fit.logits(features) > 0) == both
    assert fit.accuracy == pytest.approx(float(right.double().mean()))


def test_each_of_several_classes_is_the_regression_of_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    features, labels = samples()
    both = multilabel(labels)
    standard = StandardScaler().fit_transform(features.double().numpy())

    fit = fit_linear_probe(features, both, l2=0.01, class_weights="balanced", tolerance=1e-12)

    for index in range(3):
        theirs = LogisticRegression(
            C=1 / (0.01 * len(labels)), tol=1e-10, max_iter=10000, class_weight="balanced"
        ).fit(standard, both[:, index].numpy())
        scores = torch.tensor(theirs.decision_function(standard))
        torch.testing.assert_close(fit.logits(features)[:, index], scores, rtol=1e-4, atol=1e-4)


def test_a_feature_that_never_varies_has_no_weight_and_no_effect() -> None:
    features, labels = samples()
    constant = torch.full((len(labels), 2), 0.1)
    constant[:, 1] = 1e-20

    plain = fit_linear_probe(features, labels, l2=0.01)
    fit = fit_linear_probe(torch.cat([constant, features], dim=1), labels, l2=0.01)

    assert not fit.weight[:, :2].any()
    torch.testing.assert_close(fit.weight[:, 2:], plain.weight, rtol=1e-3, atol=1e-6)


def test_units_and_offsets_of_the_features_do_not_matter() -> None:
    features, labels = samples()
    scale, offset = torch.logspace(3, -3, features.shape[1]), torch.linspace(-9, 9, 12)

    one = fit_linear_probe(features.double(), labels, l2=0.01)
    other = fit_linear_probe(features.double() * scale + offset, labels, l2=0.01)

    expected = one.logits(features.double())
    found = other.logits(features.double() * scale + offset)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_the_same_input_gives_the_same_bits() -> None:
    features, labels = samples()

    one, other = (fit_linear_probe(features, labels) for _ in range(2))

    assert torch.equal(one.weight, other.weight)
    assert torch.equal(one.bias, other.bias)
    assert one.trials == other.trials


def test_the_strength_is_the_one_with_the_least_validation_loss() -> None:
    features, labels = samples(60)
    val_features, val_labels = samples(90, seed=1)
    val = {"val_features": val_features, "val_labels": val_labels}
    path = [1.0, 0.1, 0.01, 0.001]

    fit = fit_linear_probe(features, labels, l2=path, **val)

    losses = {}
    for l2 in path:
        alone = fit_linear_probe(features, labels, l2=l2)
        losses[l2] = float(functional.cross_entropy(alone.logits(val_features), val_labels))
    assert fit.l2 == min(losses, key=lambda l2: losses[l2])
    assert fit.val_loss == pytest.approx(losses[fit.l2], abs=1e-4)
    right = (fit.logits(val_features).argmax(dim=1) == val_labels).double().mean()
    assert fit.val_accuracy == pytest.approx(float(right))


@pytest.mark.parametrize("is_several", [False, True])
def test_without_validation_each_strength_is_judged_on_samples_held_out(is_several: bool) -> None:
    features, labels = samples(60)
    labels = multilabel(labels) if is_several else labels

    fit = fit_linear_probe(features, labels, l2=[1.0, 0.1, 0.01, 1e-5], folds=3)

    by_hand = 0.0
    for kept, held in stratified_folds(labels, 3):
        alone = fit_linear_probe(features[kept], labels[kept], l2=fit.l2, num_classes=3)
        by_hand += (
            float(objective((alone.weight, alone.bias), features[held], labels[held], 0.0)) / 3
        )
    best = min(fit.trials, key=lambda trial: trial.loss)
    # A fold's features are standardised by all, as the final fit's are.
    assert best.loss == pytest.approx(by_hand, rel=0.1)
    assert best.l2 == fit.l2
    assert fit.val_loss is None


def test_a_class_without_samples_becomes_improbable() -> None:
    features, labels = samples(num_classes=2)

    fit = fit_linear_probe(features, labels, num_classes=4, l2=0.01)

    probabilities = fit.logits(features).softmax(dim=1)
    assert fit.converged
    assert float(probabilities[:, 2:].max()) < 1e-6
    two = fit_linear_probe(features, labels, l2=0.01).logits(features).softmax(dim=1)
    torch.testing.assert_close(probabilities[:, :2], two, rtol=1e-3, atol=1e-3)


def test_half_precision_features_are_computed_as_what_they_are() -> None:
    features, labels = samples()
    rounded = features.bfloat16()

    fit = fit_linear_probe(rounded, labels, l2=0.01)

    exact = fit_linear_probe(rounded.double(), labels, l2=0.01)
    assert torch.equal(fit.weight, exact.weight)


def test_it_says_when_it_was_stopped_early() -> None:
    features, labels = samples()

    assert not fit_linear_probe(features, labels, l2=1e-4, max_iterations=2).converged


def bad(**changes: Any) -> dict[str, Any]:
    features, labels = samples(12)
    return {"features": features, "labels": labels, **changes}


NAN = samples(12)[0].index_fill(0, torch.tensor([3, 5]), math.nan)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (bad(features=NAN), r"`features` of 2 of 12 samples hold nan or infinity"),
        (
            bad(features=torch.zeros(12, 3, 2)),
            r"floats \(N, D\).*float32 \(12, 3, 2\)",
        ),
        (bad(features=torch.zeros(12, 3).long()), r"but got torch.int64"),
        (bad(labels=torch.zeros(11).long()), r"but got \(11,\) for features \(12, 12\)"),
        (bad(labels=torch.rand(12)), r"whole numbers, but got torch.float32"),
        (bad(labels=torch.zeros(12).long()), r"the labels of all 12 samples are the same: 0"),
        (bad(labels=torch.arange(12) % 3 - 1), r"from 0 to 1 for 2 classes.*among them are -1"),
        (bad(num_classes=2), r"from 0 to 1 for 2 classes.*among them are 2"),
        (bad(labels=torch.rand(12, 3)), r"hold more than 0 and 1"),
        (bad(labels=torch.ones(12, 3)), r"all 12 samples are the same: \[1.0, 1.0, 1.0\]"),
        (bad(num_classes=2, labels=torch.ones(12, 3)), r"are for 3 classes, but there are 2"),
        (bad(val_features=torch.zeros(2, 12)), r"give both, or neither"),
        (
            bad(val_features=torch.zeros(2, 5), val_labels=torch.zeros(2).long()),
            r"`val_features` \(2, 5\) have 5 features each, but `features` \(12, 12\) have 12",
        ),
        (
            bad(val_features=torch.zeros(2, 12), val_labels=torch.tensor([0, 7])),
            r"`val_labels` are from 0 to 2 for 3 classes, but among them are 7",
        ),
        (bad(l2=0.0), r"`l2` is one positive number or several, but got \[0.0\]"),
        (bad(l2=[]), r"`l2` is one positive"),
        (bad(class_weights=[1.0, 2.0]), r"`class_weights` are 3 positive numbers.*\[1.0, 2.0\]"),
        (bad(class_weights="even"), r"numbers or 'balanced', but got 'even'"),
        (bad(label_smoothing=1.0), r"`label_smoothing` is a share below 1, but got 1.0"),
        (bad(folds=1), r"`folds` must be 2 or more, but got 1"),
        (bad(num_classes=4, class_weights="balanced"), r"there are no pictures of 3"),
    ],
)
def test_what_cannot_be_fitted_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_linear_probe(**arguments)


def test_every_sample_is_held_out_once_and_every_class_stays_in_what_is_fitted() -> None:
    labels = torch.tensor([0, 0, 1, 1, 1, 2, 2, 2, 2, 2, 2, 3])

    folds = stratified_folds(labels, 4)

    held = torch.cat([held for _, held in folds])
    assert sorted(held.tolist()) == list(range(11))
    for kept, out in folds:
        assert set(labels[kept].tolist()) == {0, 1, 2, 3}
        assert not set(kept.tolist()) & set(out.tolist())


def test_one_sample_of_each_class_is_too_little_to_hold_any_out() -> None:
    with pytest.raises(ValueError, match="too few samples for a cross-validation"):
        fit_linear_probe(torch.eye(3), torch.arange(3))


@pytest.mark.parametrize("kind", [torch.int32, torch.uint8])
def test_labels_may_be_whole_numbers_of_any_size(kind: torch.dtype) -> None:
    features, labels = samples()

    one = fit_linear_probe(features, labels, l2=0.01, class_weights="balanced")
    other = fit_linear_probe(features, labels.type(kind), l2=0.01, class_weights="balanced")

    assert torch.equal(one.weight, other.weight)


@pytest.mark.gpu
def test_a_gpu_finds_the_same_head() -> None:
    features, labels = samples()
    device = torch.accelerator.current_accelerator()
    if device is None or device.type != "cuda":
        pytest.skip("float64 is known to CUDA only")

    one = fit_linear_probe(features, labels, l2=0.01)
    other = fit_linear_probe(features.to(device), labels.to(device), l2=0.01)

    torch.testing.assert_close(other.weight, one.weight, rtol=1e-5, atol=1e-6)

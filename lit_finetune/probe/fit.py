"""Fit a linear head on features: logistic regression, with a search for the strength of L2."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lit_finetune.modules.python_types import refuse_other_than_tensors
from lit_finetune.probe.criterion import make_criterion
from lit_finetune.probe.l2_search import Solver, Trial, best_trial, search_l2, validation_splits
from lit_finetune.probe.loss import LabelledFeatures
from lit_finetune.probe.standardize import in_chunks, make_feature_space
from lit_finetune.probe.validate import check_options, check_samples, check_two_classes

L2_PATH = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
"""The strengths of L2 to try by default, the strongest first."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProbeFit:
    """A fitted linear head, and the scores of the fit."""

    weight: Tensor
    """For plain features (C, D), in float64, on the CPU."""
    bias: Tensor
    """Of each class (C)."""
    l2: float
    """The chosen strength."""
    loss: float
    """The mean loss of the fitted samples, without the L2 penalty."""
    accuracy: float
    """The accuracy on the fitted samples; with labels (N, C) over all N x C answers."""
    val_loss: float | None
    """The mean loss of the validation samples; None without them."""
    val_accuracy: float | None
    """The accuracy on the validation samples; None without them."""
    trials: tuple[Trial, ...]
    """The scores of each strength on validation samples or over the folds; empty for one `l2`."""
    iterations: int
    """Of the last fit, which starts from the solution of the search."""
    converged: bool
    """Whether the last fit reached the tolerance; False if `max_iterations` stopped it."""

    def logits(self, features: Tensor) -> Tensor:
        """The logits (N, C) of features (N, D), in float64."""
        rows = [rows.double() @ self.weight.T for (rows,) in in_chunks(features.cpu())]
        return torch.cat(rows) + self.bias


def selection_scores(fit: ProbeFit) -> tuple[float, float, str]:
    """The accuracy and the loss that `l2` was chosen by, and the name of their samples.

    >>> features, labels = torch.arange(8.0)[:, None], torch.arange(8) // 4
    >>> selection_scores(fit_linear_probe(features, labels, l2=0.01))[::2]
    (1.0, 'the training pictures')
    >>> selection_scores(fit_linear_probe(features, labels, folds=2))[2]
    'pictures held out in turn'
    """
    if fit.val_accuracy is not None and fit.val_loss is not None:
        return fit.val_accuracy, fit.val_loss, "the validation pictures"
    if fit.trials:
        best = best_trial(fit.trials)
        return best.accuracy, best.loss, "pictures held out in turn"
    return fit.accuracy, fit.loss, "the training pictures"


@torch.no_grad()
def fit_linear_probe(  # noqa: PLR0913  (each can be left out)
    features: Tensor,
    labels: Tensor,
    *,
    num_classes: int | None = None,
    val_features: Tensor | None = None,
    val_labels: Tensor | None = None,
    l2: float | Sequence[float] = L2_PATH,
    class_weights: Sequence[float] | Tensor | Literal["balanced"] | None = None,
    label_smoothing: float = 0.0,
    folds: int = 5,
    max_iterations: int = 500,
    tolerance: float = 1e-8,
) -> ProbeFit:
    """Fit a linear head on features: logistic regression by L-BFGS, up to its one optimum.

    Features are standardized; the result is folded back into a head for the plain features. The
    strength of L2 is chosen by the loss of the validation samples, or by cross-validation without
    them. Equal input gives equal bits on the same machine.

    >>> features = torch.tensor([[0.0, 5.0], [1.0, 5.0], [3.0, 5.0], [4.0, 5.0]])
    >>> fit = fit_linear_probe(features, torch.tensor([0, 0, 1, 1]), l2=0.01)
    >>> fit.accuracy, fit.logits(features).argmax(dim=1)
    (1.0, tensor([0, 0, 1, 1]))

    Args:
        features: Floats (N, D), on any device that supports float64; the computation runs there.
        labels: Class indices (N), or 0 and 1 for each class (N, C): then the classes are fitted
            independently, and the loss is the sum of their binary cross-entropies.
        num_classes: By default derived from the labels. A class without a sample becomes
            improbable.
        val_features: Features (M, D) to choose `l2` by; their loss and accuracy are in the result.
        val_labels: The labels of `val_features`.
        l2: The strength, or several to choose from: half of it times the sum of all squared weights
            on standardized features is added to the mean loss. It equals `1 / (C * N)` for the `C`
            of scikit-learn, and twice that for two classes.
        class_weights: A weight per class, or `balanced`: inversely proportional to the number of
            its samples; with labels (N, C), so that presence and absence of each weigh the same.
        label_smoothing: Share of the probability that is spread over all classes.
        folds: Folds of the cross-validation; of very many samples only the first is validated.
        max_iterations: The largest number of steps of a fit.
        tolerance: A fit ends when a step is predicted to lower the loss by no more than this.

    Raises:
        ValueError: An argument is invalid; the message names all problems.
    """
    refuse_other_than_tensors(
        features=features, labels=labels, val_features=val_features, val_labels=val_labels
    )
    path = (float(l2),) if isinstance(l2, int | float) else tuple(sorted(l2, reverse=True))
    val_samples = _both(val_features, val_labels)
    num_classes = check_samples(features, labels, num_classes)
    if val_samples:
        check_samples(*val_samples, num_classes, fitted=(features, labels))
    check_two_classes(labels)
    check_options(
        path,
        num_classes=num_classes,
        class_weights=class_weights,
        label_smoothing=label_smoothing,
        folds=folds,
    )
    labels = labels.to(features.device)
    labels = labels.long() if labels.dim() == 1 else labels
    criterion = make_criterion(labels, num_classes, class_weights, label_smoothing)
    space = make_feature_space(features)
    data = LabelledFeatures(
        space.project(features), labels, scaler=space.inner_scaler, criterion=criterion
    )
    val = None
    if val_samples:
        rows = space.project(val_samples[0].to(features.device))
        val = data.with_samples(rows, val_samples[1].to(labels))
    solver = Solver(num_classes=num_classes, max_iterations=max_iterations, tolerance=tolerance)
    trials, start = _search(solver, data, val, path, folds)
    chosen = best_trial(trials).l2 if trials else path[0]
    best = solver.fit(data, chosen, start)
    solution = space.fold(best.x).cpu()
    loss, accuracy = data.score(best.x)
    val_loss, val_accuracy = val.score(best.x) if val else (None, None)
    return ProbeFit(
        weight=solution[:, :-1].contiguous(),
        bias=solution[:, -1].contiguous(),
        l2=chosen,
        loss=loss,
        accuracy=accuracy,
        val_loss=val_loss,
        val_accuracy=val_accuracy,
        trials=tuple(trials),
        iterations=best.iterations,
        converged=best.converged,
    )


def _search(
    solver: Solver,
    data: LabelledFeatures,
    val: LabelledFeatures | None,
    path: Sequence[float],
    folds: int,
) -> tuple[list[Trial], Tensor | None]:
    """The trials of several strengths, and where the last fit starts; nothing for one strength."""
    if len(path) == 1:
        return [], None
    trials, solution = search_l2(solver, validation_splits(data, val, folds), path)
    return trials, solution.x


def _both(features: Tensor | None, labels: Tensor | None) -> tuple[Tensor, Tensor] | None:
    if (features is None) != (labels is None):
        raise ValueError("`val_features` and `val_labels` belong together: give both, or neither.")
    return None if features is None or labels is None else (features, labels)

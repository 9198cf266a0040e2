"""Fit a linear head on features: logistic regression, and how strong its L2 should be."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lit_finetune.modules.python_types import refuse_other_than_tensors
from lit_finetune.probe.criterion import make_criterion
from lit_finetune.probe.folds import deal_folds
from lit_finetune.probe.lbfgs import Minimum, minimise
from lit_finetune.probe.loss import LabelledFeatures, ProbeLoss
from lit_finetune.probe.standardize import in_chunks, make_space
from lit_finetune.probe.validate import check_options, check_samples, check_two_classes

L2_PATH = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
"""The strengths that are tried, the strongest first."""
WORSE_IN_A_ROW = 2
"""After so many strengths that are worse than the best, the weaker ones are not tried."""

TRIAL_TOLERANCE = 1e-7
"""How well a strength is fitted that is but tried: it differs from the next one by far more."""
MANY = 50_000
"""From so many samples on one fold tells enough, and the others would only take memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """How well a strength of L2 did on samples that were not fitted."""

    l2: float
    loss: float
    accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProbeFit:
    """A linear head, and how it was found."""

    weight: Tensor
    """On the features as they are (C, D); in float64, on the CPU."""
    bias: Tensor
    """Of each class (C)."""
    l2: float
    """The strength that was chosen."""
    loss: float
    """The mean loss of the samples that were fitted, without what L2 adds."""
    accuracy: float
    """The share of them that is right; with labels (N, C), of all N x C answers."""
    val_loss: float | None
    """The mean loss of the validation samples, if there are any."""
    val_accuracy: float | None
    """The share of them that is right."""
    trials: tuple[Trial, ...]
    """What the strength was chosen by, on validation or over the folds; one has no choice."""
    iterations: int
    """Of the last fit, which begins where the trial of that strength has ended."""
    converged: bool
    """Whether it came to its end; else `max_iterations` stopped it."""

    def logits(self, features: Tensor) -> Tensor:
        """The scores (N, C) of features (N, D), in float64."""
        rows = [rows.double() @ self.weight.T for (rows,) in in_chunks(features.cpu())]
        return torch.cat(rows) + self.bias


@dataclass(frozen=True, slots=True, kw_only=True)
class _Search:
    """How fits are made."""

    num_classes: int
    max_iterations: int
    tolerance: float

    def fit(
        self,
        data: LabelledFeatures,
        l2: float,
        start: Tensor | None = None,
        tolerance: float | None = None,
    ) -> Minimum:
        if start is None:
            size = (self.num_classes, data.features.shape[1] + 1)
            start = torch.zeros(size, dtype=torch.float64, device=data.features.device)
        loss = ProbeLoss(data, l2=l2)
        return minimise(
            loss,
            start,
            precondition=loss.precondition,
            tolerance=tolerance or self.tolerance,
            max_iterations=self.max_iterations,
        )

    def run(
        self,
        data: LabelledFeatures,
        held: LabelledFeatures | None,
        path: Sequence[float],
        folds: int,
    ) -> tuple[list[Trial], Minimum]:
        """The trials of the strengths, and the head of the best one."""
        if len(path) == 1:
            return [], self.fit(data, path[0])
        if held:
            splits = [(data, held)]
        else:
            dealt = deal_folds(data.labels, folds)
            used = dealt if len(data.labels) < MANY else dealt[:1]
            splits = [data.split(*fold) for fold in used]
        trials, nearly = self.choose(splits, path)
        return trials, self.fit(data, _best(trials).l2, nearly.x)

    def choose(
        self, splits: Sequence[tuple[LabelledFeatures, LabelledFeatures]], path: Sequence[float]
    ) -> tuple[list[Trial], Minimum]:
        """What each strength gave, and the first split's head of the best one.

        Each fit starts where the stronger one before it has ended.

        Args:
            splits: What to fit and what to hold out.
            path: The strengths to try, the strongest first.
        """
        trials: list[Trial] = []
        found: list[Minimum] = []
        starts: list[Tensor | None] = [None] * len(splits)
        for l2 in path:
            pairs = zip(splits, starts, strict=True)
            tolerance = max(self.tolerance, TRIAL_TOLERANCE)
            fits = [self.fit(data, l2, start, tolerance) for (data, _), start in pairs]
            starts = [fit.x for fit in fits]
            found.append(fits[0])
            held = [(h.score(fit.x), h.total) for (_, h), fit in zip(splits, fits, strict=True)]
            total = sum(weight for _, weight in held)
            loss, accuracy = (sum(s[i] * weight for s, weight in held) / total for i in range(2))
            trials.append(Trial(l2=l2, loss=loss, accuracy=accuracy))
            best = trials.index(_best(trials))
            if len(trials) - 1 - best >= WORSE_IN_A_ROW:
                break
        return trials, found[best]


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
    """Fit a linear head on features: logistic regression by L-BFGS, found to its one optimum.

    The features are standardised, and that is folded into the head, which is for the features as
    they are. The strength of L2 is chosen by the loss on validation samples where they are given,
    else by cross-validation. Equal input gives equal bits on the same machine.

    >>> features = torch.tensor([[0.0, 5.0], [1.0, 5.0], [3.0, 5.0], [4.0, 5.0]])
    >>> fit = fit_linear_probe(features, torch.tensor([0, 0, 1, 1]), l2=0.01)
    >>> fit.accuracy, fit.logits(features).argmax(dim=1)
    (1.0, tensor([0, 0, 1, 1]))

    Args:
        features: Floats (N, D), on any device that knows float64, in which all is computed there.
        labels: Class indices (N), or a 0 or 1 for each class (N, C), which are then fitted one by
            one: the loss is the sum of their binary cross-entropies.
        num_classes: By default what the labels tell. A class without a sample becomes improbable.
        val_features: Features (M, D) to choose `l2` by, and to tell loss and accuracy of.
        val_labels: Their labels.
        l2: The strength, or several to choose from: half of it times the sum of all squared weights
            on standardised features is added to the mean loss. It is `1 / (C * N)` for the `C` of
            scikit-learn, of two classes twice that.
        class_weights: A weight per class, or `balanced`: inversely proportional to the number of
            its samples; with labels (N, C), so that presence and absence of each weigh the same.
        label_smoothing: Share of the probability that is spread over all classes.
        folds: Of the cross-validation; of very many samples only the first is held out.
        max_iterations: The most steps of a fit.
        tolerance: A fit ends when a step promises to lower the loss by less.

    Raises:
        ValueError: Something cannot be; the message names all problems.
    """
    refuse_other_than_tensors(
        features=features, labels=labels, val_features=val_features, val_labels=val_labels
    )
    path = (float(l2),) if isinstance(l2, int | float) else tuple(sorted(l2, reverse=True))
    val = _both(val_features, val_labels)
    num_classes = check_samples(features, labels, num_classes)
    if val:
        check_samples(*val, num_classes, like=(features, labels))
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
    space = make_space(features)
    criterion = make_criterion(labels, num_classes, class_weights, label_smoothing)
    data = LabelledFeatures(space.enter(features), labels, scaling=space.inner, criterion=criterion)
    held = data.like(space.enter(val[0].to(features.device)), val[1].to(labels)) if val else None
    search = _Search(num_classes=num_classes, max_iterations=max_iterations, tolerance=tolerance)
    trials, best = search.run(data, held, path, folds)
    solution = space.leave(best.x).cpu()
    loss, accuracy = data.score(best.x)
    val_loss, val_accuracy = held.score(best.x) if held else (None, None)
    return ProbeFit(
        weight=solution[:, :-1].contiguous(),
        bias=solution[:, -1].contiguous(),
        l2=_best(trials).l2 if trials else path[0],
        loss=loss,
        accuracy=accuracy,
        val_loss=val_loss,
        val_accuracy=val_accuracy,
        trials=tuple(trials),
        iterations=best.iterations,
        converged=best.converged,
    )


def _best(trials: Sequence[Trial]) -> Trial:
    """The trial of the least loss; of equals the one of the strongest L2, which comes first."""
    return min(trials, key=lambda trial: trial.loss)


def _both(features: Tensor | None, labels: Tensor | None) -> tuple[Tensor, Tensor] | None:
    if (features is None) != (labels is None):
        raise ValueError("`val_features` and `val_labels` belong together: give both, or neither.")
    return None if features is None or labels is None else (features, labels)

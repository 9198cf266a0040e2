"""Check the samples and the options of a linear probe, and report all problems at once."""

from collections.abc import Sequence
from math import isfinite
from typing import Any

from torch import Tensor

from lit_finetune.probe.standardize import in_chunks


def check_samples(
    features: Tensor,
    labels: Tensor,
    num_classes: int | None,
    *,
    fitted: tuple[Tensor, Tensor] | None = None,
) -> int:
    """Refuse features and labels that cannot be fitted or validated.

    Args:
        features: Expected to be (N, D).
        labels: Expected to be (N) or (N, C).
        num_classes: The number of classes; None to derive it from the labels.
        fitted: For validation samples: the samples that are fitted.

    Returns:
        The number of classes.

    Raises:
        ValueError: Names every problem.
    """
    prefix = "val_" if fitted else ""
    problems = _shape_problems(features, labels, prefix)
    if not problems and fitted:
        problems = _mismatches(features, labels, *fitted)
    if not problems:
        if num_classes is None:
            num_classes = labels.shape[1] if labels.dim() == 2 else int(labels.max()) + 1
        problems = _label_problems(labels, num_classes, prefix)
        problems += _nonfinite_problems(features, prefix)
    if problems or num_classes is None:
        raise ValueError("A linear probe cannot be fitted:\n  " + "\n  ".join(problems))
    return num_classes


def check_two_classes(labels: Tensor) -> None:
    """Refuse labels that are all the same.

    Raises:
        ValueError: All samples have the same label.
    """
    if not has_two_classes(labels):
        raise ValueError(
            f"A linear probe tells classes apart, but the labels of all {len(labels)} samples are"
            f" the same: {labels[0].tolist()}."
        )


def check_options(
    l2: Sequence[float],
    *,
    num_classes: int,
    class_weights: Sequence[float] | Tensor | str | None,
    label_smoothing: float,
    folds: int,
) -> None:
    """Refuse invalid options of a fit.

    Raises:
        ValueError: Names every problem.
    """
    problems = []
    if not l2 or not all(map(_is_strength, l2)):
        problems.append(f"`l2` is one positive number or several, but got {list(l2)}")
    if not 0 <= label_smoothing < 1:
        problems.append(f"`label_smoothing` is a share below 1, but got {label_smoothing}")
    if not isinstance(folds, int) or folds < 2:
        problems.append(f"`folds` must be 2 or more, but got {folds!r}")
    if isinstance(class_weights, str):
        if class_weights != "balanced":
            problems.append(f"`class_weights` are numbers or 'balanced', but got {class_weights!r}")
    elif class_weights is not None:
        weights = [float(weight) for weight in class_weights]
        if len(weights) != num_classes or not all(isfinite(w) and w > 0 for w in weights):
            expected = f"`class_weights` are {num_classes} positive numbers, one a class"
            problems.append(f"{expected}, but got {weights}")
    if problems:
        raise ValueError("These options of a linear probe are invalid:\n  " + "\n  ".join(problems))


def _is_strength(value: Any) -> bool:
    return isinstance(value, int | float) and isfinite(value) and value > 0


def has_two_classes(labels: Tensor) -> bool:
    """Whether there are two classes, or one that is both present and absent."""
    return bool((labels != labels[:1]).any())


def _shape_problems(features: Tensor, labels: Tensor, prefix: str) -> list[str]:
    problems = []
    shape, labels_shape = tuple(features.shape), tuple(labels.shape)
    if features.dim() != 2 or not features.numel() or not features.is_floating_point():
        problems.append(
            f"`{prefix}features` are floats (N, D), a row for each sample,"
            f" but got {features.dtype} {shape}"
        )
    if labels.dim() not in (1, 2) or labels_shape[:1] != shape[:1]:
        problems.append(
            f"`{prefix}labels` are (N), or (N, C) with a 0 or 1 for each class,"
            f" but got {labels_shape} for features {shape}"
        )
    elif labels.dim() == 1 and (labels.is_floating_point() or labels.is_complex()):
        problems.append(f"`{prefix}labels` (N) are whole numbers, but got {labels.dtype}")
    return problems


def _mismatches(
    features: Tensor, labels: Tensor, fitted: Tensor, fitted_labels: Tensor
) -> list[str]:
    """How validation samples differ in shape from the fitted ones."""
    problems = []
    if features.shape[1] != fitted.shape[1]:
        problems.append(
            f"`val_features` {tuple(features.shape)} have {features.shape[1]} features each, but"
            f" `features` {tuple(fitted.shape)} have {fitted.shape[1]}"
        )
    if labels.dim() != fitted_labels.dim():
        problems.append(
            f"`val_labels` {tuple(labels.shape)} have another number of dimensions than `labels`"
            f" {tuple(fitted_labels.shape)}"
        )
    return problems


def _label_problems(labels: Tensor, num_classes: int, prefix: str) -> list[str]:
    if labels.dim() == 2:
        problems = []
        if labels.shape[1] != num_classes:
            problems.append(
                f"`{prefix}labels` {tuple(labels.shape)} are for {labels.shape[1]} classes, but"
                f" there are {num_classes}"
            )
        if not bool(((labels == 0) | (labels == 1)).all()):
            problems.append(f"`{prefix}labels` (N, C) hold more than 0 and 1")
        return problems
    outside = sorted({*labels[(labels < 0) | (labels >= num_classes)].tolist()})
    if not outside:
        return []
    return [
        f"`{prefix}labels` are from 0 to {num_classes - 1} for {num_classes} classes, but among"
        f" them are {', '.join(map(str, outside[:5]))}"
    ]


def _nonfinite_problems(features: Tensor, prefix: str) -> list[str]:
    bad = sum(int((~rows.isfinite()).any(dim=1).sum()) for (rows,) in in_chunks(features))
    if not bad:
        return []
    return [f"`{prefix}features` of {bad} of {len(features)} samples hold nan or infinity"]

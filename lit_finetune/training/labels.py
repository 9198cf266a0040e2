"""Refuse labels out of range, with a clearer error than torch's, or a GPU's assertion."""

from typing import Any

import torch
from torch import Tensor

from lit_finetune.training.eval_metrics import is_class_index
from lit_finetune.training.metric_values import describe


def labels_problem(target: Any, num_classes: int) -> str | None:
    """What is wrong with a target of the default loss; None if it can be taken.

    >>> labels_problem(torch.tensor([[0, 1], [1, 0]]), 2)[:52]
    'The labels are one-hot whole numbers (2, 2): `argmax'
    """
    wanted = f"Labels are int64 class numbers (N), or probabilities (N, {num_classes})"
    if not isinstance(target, Tensor):
        return f"{wanted}, as a tensor, but the loader gives {describe(target)}."
    shape = tuple(target.shape)
    if target.dim() == 1:
        is_index = not target.is_floating_point() and target.dtype != torch.bool
        return None if is_index else f"{wanted}, but they are {target.dtype}: convert by `.long()`."
    if target.dim() == 2 and target.is_floating_point() and shape[1] == num_classes:
        return None
    if target.dim() == 2 and shape[1] == 1:
        return f"{wanted}, but they are {shape}: `squeeze(1)` makes them (N), `.long()` int64."
    if target.dim() == 2 and shape[1] == num_classes:
        return (
            f"The labels are one-hot whole numbers {shape}: `argmax(1)` makes them class numbers"
            " (N), or `.float()` probabilities."
        )
    return f"{wanted}, but they are {shape}. Override `loss` and `metrics` for other targets."


def refuse_labels_out_of_range(target: Tensor, num_classes: int, *, batch_idx: int) -> None:
    """Refuse labels below 0 or not below the number of classes.

    On an accelerator, only the first batch of an epoch is checked: each check waits for the device.

    Raises:
        ValueError: Names the labels, and what to do.

    >>> import torch
    >>> refuse_labels_out_of_range(torch.tensor([0, 2]), 3, batch_idx=0)
    >>> refuse_labels_out_of_range(torch.tensor([1, 3]), 3, batch_idx=0)
    Traceback (most recent call last):
    ValueError: Labels of num_classes=3 are the numbers from 0 to 2, but batch 0 has 1 to 3. ...
    """
    if not target.numel() or (batch_idx and target.device.type != "cpu"):
        return
    labels = target.detach().cpu().numpy()  # no copy on a CPU
    lowest, highest = labels.min(), labels.max()
    if lowest < 0 or highest >= num_classes:
        raise ValueError(
            f"Labels of num_classes={num_classes} are the numbers from 0 to {num_classes - 1}, but"
            f" batch {batch_idx} has {lowest} to {highest}. Count the classes from 0, or give the"
            " right `num_classes`; to leave some pictures out, override `loss`."
        )


def checked_labels(target: Any, num_classes: int, *, batch_idx: int) -> Any:
    """A target of the default loss: class numbers as int64, or probabilities.

    >>> checked_labels(torch.tensor([0, 1], dtype=torch.uint8), 2, batch_idx=0)
    tensor([0, 1])

    Raises:
        ValueError: It is neither.
    """
    if problem := labels_problem(target, num_classes):
        raise ValueError(problem)
    if target.dim() > 1:
        return target
    refuse_labels_out_of_range(target, num_classes, batch_idx=batch_idx)
    return target.long()


def labels_of(classifier: Any, target: Any, batch_idx: int) -> Any:
    """The target of a batch as a classifier's loss takes it, which may be the user's own."""
    if classifier.has_own_loss:
        return target
    return checked_labels(target, classifier.num_classes, batch_idx=batch_idx)


def refuse_unmeasurable(classifier: Any, target: Any) -> None:
    """Refuse a target that accuracy and F1 cannot count.

    Raises:
        ValueError: Says what it is, and what to do.
    """
    if is_class_index(target):
        return
    problem = None if classifier.has_own_loss else labels_problem(target, classifier.num_classes)
    raise ValueError(
        problem
        or "Accuracy and F1 need the number of a class for each picture, (N), but the target is"
        f" {describe(target)}. Override `metrics`, beside `loss`, for such targets."
    )

"""Refuse labels that are no class, before torch does so in its own words, or a GPU in none."""

from torch import Tensor


def refuse_other_labels(target: Tensor, num_classes: int, *, batch_idx: int) -> None:
    """Refuse labels below 0 and from the number of classes on.

    On an accelerator the first batch of an epoch alone is looked at: each look waits for it.

    Raises:
        ValueError: Names the labels, and what to do.

    >>> import torch
    >>> refuse_other_labels(torch.tensor([0, 2]), 3, batch_idx=0)
    >>> refuse_other_labels(torch.tensor([1, 3]), 3, batch_idx=0)
    Traceback (most recent call last):
    ValueError: Labels of num_classes=3 are the numbers from 0 to 2, but batch 0 has 1 to 3. ...
    """
    if not target.numel() or (batch_idx and target.device.type != "cpu"):
        return
    labels = target.detach().cpu().numpy()  # of what lies on a CPU no copy, and nothing to wait for
    least, most = labels.min(), labels.max()
    if least < 0 or most >= num_classes:
        raise ValueError(
            f"Labels of num_classes={num_classes} are the numbers from 0 to {num_classes - 1}, but"
            f" batch {batch_idx} has {least} to {most}. Count the classes from 0, or give as many"
            " `num_classes` as there are; to leave some pictures out, override `loss`."
        )

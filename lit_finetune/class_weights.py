"""Weights of the classes in the loss."""

from collections.abc import Sequence


def balanced_weights(counts: Sequence[int]) -> list[float]:
    """Weights inversely proportional to the number of pictures, 1 where all classes have as many.

    The rule is scikit-learn's `class_weight="balanced"`.

    >>> balanced_weights([10, 30])
    [2.0, 0.6666666666666666]

    Raises:
        ValueError: A class has no picture.
    """
    if not all(counts):
        raise ValueError(
            f"Balanced class weights need a picture of each class, but the counts are {counts}."
        )
    return [sum(counts) / (len(counts) * count) for count in counts]

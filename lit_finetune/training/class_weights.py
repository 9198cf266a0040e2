"""The weights of classes in the loss."""

from collections.abc import Mapping, Sequence

from lit_finetune._errors import some_of


def balanced_weights(counts: Mapping[str, int] | None, classes: Sequence[str]) -> list[float]:
    """Weights inversely proportional to the number of images; 1 if all classes have the same.

    The rule is scikit-learn's `class_weight="balanced"`.

    >>> balanced_weights({"ant": 10, "bee": 30}, ["ant", "bee"])
    [2.0, 0.6666666666666666]

    Args:
        counts: The number of training images of each class; None if unknown.
        classes: The order of the weights.

    Raises:
        ValueError: A class has no image, or there are no counts.
    """
    if counts is None:
        raise ValueError(
            "class_weights='balanced' counts the pictures of a datamodule of lit_finetune. With"
            " another loader, pass a list of weights."
        )
    if empty := [name for name in classes if not counts[name]]:
        raise ValueError(f"class_weights='balanced': there are no pictures of {some_of(empty)}.")
    total = sum(counts.values())
    return [total / (len(classes) * counts[name]) for name in classes]

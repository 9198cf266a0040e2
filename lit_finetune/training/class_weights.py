"""How much each class counts in the loss."""

from collections.abc import Mapping, Sequence

from lit_finetune._errors import some_of


def balanced_weights(counts: Mapping[str, int] | None, classes: Sequence[str]) -> list[float]:
    """Weights inversely proportional to the number of pictures, 1 where all classes have as many.

    The rule is scikit-learn's `class_weight="balanced"`.

    >>> balanced_weights({"ant": 10, "bee": 30}, ["ant", "bee"])
    [2.0, 0.6666666666666666]

    Args:
        counts: Training pictures of each class; None where nobody counted them.
        classes: The order of the weights.

    Raises:
        ValueError: A class has no picture, or there are no counts.
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

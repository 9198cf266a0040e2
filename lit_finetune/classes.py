"""The classes of data and model: whether they are the same, and how much each counts."""

from collections.abc import Mapping, Sequence

from lit_finetune._names import some_of


def check_classes(data: Sequence[str], model: Sequence[str], *, named: bool) -> None:
    """Refuse data whose classes are not the model's.

    Args:
        data: The class names of the data; the place of each is its label.
        model: Those of the model.
        named: Whether the model's names count, and not only their number.

    Raises:
        ValueError: Says which classes differ.
    """
    if len(data) != len(model):
        raise ValueError(
            f"The data has {len(data)} classes ({some_of(data)}), but the model"
            f" num_classes={len(model)}. Build the model with num_classes={len(data)}."
        )
    if named and list(data) != list(model):
        both = enumerate(zip(data, model, strict=True))
        pairs = [
            f"{label}: {ours!r} and {theirs!r}" for label, (ours, theirs) in both if ours != theirs
        ]
        raise ValueError(
            "The classes of the data are not those that the model was trained on; by label, data"
            f" and model have {some_of(pairs)}. Give the folders the model's names."
        )


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

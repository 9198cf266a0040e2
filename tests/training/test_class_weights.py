import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from lit_finetune.training.class_weights import balanced_weights


@pytest.mark.parametrize("counts", [[5, 5, 5], [1, 9], [244, 153, 2, 71], [1]])
def test_balanced_weights_are_those_of_scikit_learn(counts: list[int]) -> None:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    reference = compute_class_weight("balanced", classes=np.unique(labels), y=labels)
    names = [f"class {label}" for label in range(len(counts))]
    assert balanced_weights(dict(zip(names, counts, strict=True)), names) == pytest.approx(
        list(reference)
    )


def test_weights_come_in_the_order_of_the_classes_and_not_of_the_counts() -> None:
    assert balanced_weights({"bee": 30, "ant": 10}, ["ant", "bee"]) == [2.0, pytest.approx(2 / 3)]


def test_classes_without_pictures_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="no pictures of bee, wasp"):
        balanced_weights({"ant": 3, "bee": 0, "wasp": 0}, ["ant", "bee", "wasp"])


def test_weights_that_nobody_counted_are_refused() -> None:
    with pytest.raises(ValueError, match="pass a list of weights"):
        balanced_weights(None, ["ant", "bee"])

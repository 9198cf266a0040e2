import random
from collections import Counter

import pytest

from datamodules.sources.stratified_split import check_fractions, part_sizes, stratified_split

LABELS = ["ant"] * 53 + ["bee"] * 20 + ["cow"] * 7


@pytest.mark.parametrize("seed", [0, 1, 99])
@pytest.mark.parametrize("fractions", [[0.8, 0.2], [0.7, 0.2, 0.1], [0.5, 0.5], [1.0]])
def test_every_sample_is_in_exactly_one_part(fractions, seed):
    parts = stratified_split(LABELS, fractions, seed=seed)
    assert sorted(i for part in parts for i in part) == list(range(len(LABELS)))


@pytest.mark.parametrize("fractions", [[0.8, 0.2], [0.7, 0.2, 0.1], [0.29, 0.71]])
def test_every_class_has_its_share_to_the_nearest_sample(fractions):
    parts = stratified_split(LABELS, fractions, seed=0)
    for part, fraction in zip(parts, fractions, strict=True):
        found = Counter(LABELS[i] for i in part)
        for label, total in Counter(LABELS).items():
            assert abs(found[label] - total * fraction) < 1


def test_a_split_is_the_same_whatever_the_global_random_state():
    random.seed(1)
    first = stratified_split(LABELS, [0.8, 0.2], seed=3)
    random.seed(2)
    assert stratified_split(LABELS, [0.8, 0.2], seed=3) == first
    assert stratified_split(LABELS, [0.8, 0.2], seed=4) != first


@pytest.mark.parametrize("total", range(3, 30))
def test_no_part_of_a_class_goes_without(total):
    sizes = part_sizes(total, [0.9, 0.05, 0.05])
    assert sum(sizes) == total
    assert min(sizes) >= 1


def test_a_class_too_small_to_split_is_named():
    with pytest.raises(ValueError, match=r"'cow' has 1 picture.*2 parts"):
        stratified_split(["ant", "ant", "cow"], [0.8, 0.2], seed=0)


@pytest.mark.parametrize("fractions", [(-0.1, 0), (1, 0), (0.5, 0.5), (0, 1.5), (float("nan"), 0)])
def test_shares_that_leave_nothing_to_train_on_are_refused(fractions):
    with pytest.raises(ValueError, match="together below 1"):
        check_fractions(val_split=fractions[0], test_split=fractions[1])

"""Split samples into parts, stratified by class."""

import random
from collections.abc import Hashable, Sequence


def stratified_split(
    labels: Sequence[Hashable], fractions: Sequence[float], *, seed: int
) -> list[list[int]]:
    """The indices of each part, in ascending order; equal arguments give equal parts.

    Each class is divided separately, by the largest remainder; each part gets at least one sample.

    Args:
        labels: The class of each sample.
        fractions: The share of each part; their sum is 1.
        seed: The seed of the shuffle.

    >>> stratified_split(["ant"] * 4 + ["bee"] * 4, [0.75, 0.25], seed=0)
    [[0, 1, 2, 4, 5, 7], [3, 6]]
    """
    rng = random.Random(seed)
    parts: list[list[int]] = [[] for _ in fractions]
    for label, indices in indices_by_label(labels).items():
        if len(indices) < len(fractions):
            raise ValueError(
                f"Class {label!r} has {len(indices)} picture(s), too few for a split into "
                f"{len(fractions)} parts: add pictures, or leave the class out."
            )
        rng.shuffle(indices)
        start = 0
        for part, size in zip(parts, part_sizes(len(indices), fractions), strict=True):
            part.extend(indices[start : start + size])
            start += size
    return [sorted(part) for part in parts]


def indices_by_label(labels: Sequence[Hashable]) -> dict[Hashable, list[int]]:
    """The indices of each label, in the order in which the labels first appear."""
    found: dict[Hashable, list[int]] = {}
    for index, label in enumerate(labels):
        found.setdefault(label, []).append(index)
    return found


def part_sizes(total: int, fractions: Sequence[float]) -> list[int]:
    """The size of each part, by the largest remainder, and at least one.

    >>> part_sizes(7, [0.7, 0.2, 0.1]), part_sizes(2, [0.9, 0.1])
    ([5, 1, 1], [1, 1])
    """
    exact = [total * fraction for fraction in fractions]
    sizes = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: sizes[i] - exact[i])
    for i in by_remainder[: total - sum(sizes)]:
        sizes[i] += 1
    while 0 in sizes:
        sizes[sizes.index(max(sizes))] -= 1
        sizes[sizes.index(0)] += 1
    return sizes


def split_fractions(*, val_split: float, test_split: float) -> dict[str, float]:
    """The share of each part that is not empty.

    >>> split_fractions(val_split=0.25, test_split=0)
    {'train': 0.75, 'val': 0.25}
    """
    shares = {"val": val_split, "test": test_split}
    return {"train": 1 - val_split - test_split} | {k: v for k, v in shares.items() if v}


def check_fractions(**fractions: float) -> None:
    """Refuse shares that leave nothing for training.

    >>> check_fractions(val_split=0.9, test_split=0.2)
    Traceback (most recent call last):
    ...
    ValueError: `val_split` 0.9 and `test_split` 0.2 must be at least 0 and together below 1.
    """
    if min(fractions.values()) < 0 or not sum(fractions.values()) < 1:
        named = " and ".join(f"`{name}` {value}" for name, value in fractions.items())
        together = " and together" if len(fractions) > 1 else " and"
        raise ValueError(f"{named} must be at least 0{together} below 1.")

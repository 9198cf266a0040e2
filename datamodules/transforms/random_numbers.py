"""Chance for whole batches: numbers that follow from a seed and a picture's number alone."""

import numpy as np
from numpy.typing import NDArray

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniforms(
    seeds: NDArray[np.int64], pictures: NDArray[np.int64], count: int
) -> NDArray[np.float64]:
    """Numbers from 0 to below 1, `count` for each picture, whatever else is in its batch.

    This is SplitMix64 (https://doi.org/10.1145/2714064.2660195), begun from seed and picture.

    >>> both = uniforms(np.array([7, 7]), np.array([1, 2]), 3)
    >>> bool((uniforms(np.array([7]), np.array([2]), 3) == both[1]).all())
    True
    """
    with np.errstate(over="ignore"):  # it is meant to wrap around
        starts = mix(seeds.astype(np.uint64) ^ mix(pictures.astype(np.uint64) + GOLDEN))
        steps = GOLDEN * np.arange(1, count + 1, dtype=np.uint64)
        whole = mix(starts[:, None] + steps) >> np.uint64(11)
    return whole.astype(np.float64) * 2.0**-53


def mix(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Each number as another one, all of whose bits depend on all of the bits before."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))

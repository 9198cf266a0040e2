"""Random numbers for whole batches that depend only on a seed and the index of an image."""

import numpy as np
from numpy.typing import NDArray

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniforms(
    seeds: NDArray[np.int64], indices: NDArray[np.int64], count: int
) -> NDArray[np.float64]:
    """Random numbers (N, count) from 0 to below 1, whatever else is in the batch.

    SplitMix64 (https://doi.org/10.1145/2714064.2660195), started from a seed and an index.

    >>> both = uniforms(np.array([7, 7]), np.array([1, 2]), 3)
    >>> bool((uniforms(np.array([7]), np.array([2]), 3) == both[1]).all())
    True
    """
    with np.errstate(over="ignore"):  # integers wrap around on purpose
        starts = mix(seeds.astype(np.uint64) ^ mix(indices.astype(np.uint64) + GOLDEN))
        steps = GOLDEN * np.arange(1, count + 1, dtype=np.uint64)
        integers = mix(starts[:, None] + steps) >> np.uint64(11)
    return integers.astype(np.float64) * 2.0**-53


def mix(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix the bits of each number: every output bit depends on all input bits."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))

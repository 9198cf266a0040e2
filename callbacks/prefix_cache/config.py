"""The options of `FrozenPrefixCache`, validated."""

from dataclasses import dataclass
from pathlib import Path

import torch

from lit_finetune._errors import one_of

DTYPES = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """How many views of each image are cached, in which data type, and where.

    >>> cache_config(0, "fp16", None, 0.5)
    CacheConfig(views=0, dtype=torch.float16, cache_dir=None, memory_limit=536870912)
    """

    views: int
    """Variants of each training image; 0 where the dataset is deterministic."""
    dtype: torch.dtype | None
    """Of the stored values; None for the data type in which they are computed."""
    cache_dir: Path | None
    memory_limit: int
    """Bytes of each table that may be in memory."""


def cache_config(
    views: int, dtype: str, cache_dir: str | Path | None, memory_limit: float
) -> CacheConfig:
    """The options, with the limit converted from GiB to bytes.

    Raises:
        ValueError: A value is out of range or unknown.
    """
    if views < 0:
        raise ValueError(f"`views` must be 0 or more, but got {views}.")
    if memory_limit < 0:
        raise ValueError(f"`memory_limit` must be 0 or more, but got {memory_limit}.")
    folder = None if cache_dir is None else Path(cache_dir).expanduser()
    dtype_ = DTYPES[one_of(str(dtype), DTYPES, "dtype")]
    return CacheConfig(views, dtype_, folder, int(memory_limit * 2**30))

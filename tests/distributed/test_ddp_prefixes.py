"""Several processes keep what enters a block together, and each reads what the others have made."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.test_ddp import run

PLAIN = {"data": {"train_augmentation": "none", "num_workers": 0}}


@pytest.mark.long
@pytest.mark.parametrize(
    "where", ["of this run", pytest.param("of later runs too", marks=pytest.mark.sweep)]
)
def test_the_replicas_end_with_the_bits_that_they_would_have_ended_with(
    tmp_path: Path, where: str
) -> None:
    folders = [tmp_path / name for name in ("plain", "cached", "shared")]
    for folder in folders:
        folder.mkdir()
    cache: dict[str, Any] = {} if where == "of this run" else {"cache_dir": str(folders[2])}

    plain = run(folders[0], PLAIN)
    cached = run(folders[1], {**PLAIN, "cache": cache})

    for rank in range(2):
        for one, other in zip(plain[rank], cached[rank], strict=True):
            for key, value in one["weights"].items():
                assert torch.equal(value, other["weights"][key]), key
            assert one["evaluated"] == other["evaluated"]
    is_shared = len(list(folders[2].iterdir()))
    assert is_shared == (4 if cache else 0)

"""Two processes share a stream: no picture twice, all equally many, the same weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lit_finetune.datamodules import ImageFolderDataModule, write_shards
from tests.distributed.ranks import run_ranks
from tests.distributed.streamed_run import main

pytest.importorskip("litdata")


@pytest.mark.long
def test_two_processes_share_a_stream(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("ants", "bees"):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for number in range(17):
            pixels = rng.integers(0, 256, (20, 24, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    write_shards(ImageFolderDataModule(tmp_path / "photos"), tmp_path / "shards")

    run_ranks(main, tmp_path, folder=tmp_path)

    one, other = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    for mine, others in zip(one["trained"], other["trained"], strict=True):
        assert len(mine) == len(others) == 12  # of 28 pictures, in batches of 4
        assert len({*mine, *others}) == 24
    assert one["trained"][0] != one["trained"][1]
    assert len(one["validated"]) + len(other["validated"]) == 6
    assert len({*one["validated"], *other["validated"]}) == 6
    assert all(torch.equal(value, other["weights"][key]) for key, value in one["weights"].items())

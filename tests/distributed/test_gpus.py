"""Unfreezing on one GPU, whole or sharded, in half precision too, and on two."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.test_sharded import Epochs, epochs, run, values

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

GPU = {"accelerator": "gpu", "deterministic": True}
ONE = {"data_parallel_size": 1, "tensor_parallel_size": 1}


@pytest.fixture(autouse=True)
def _same_sums_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def assert_close(one: Epochs, other: Epochs) -> None:
    for epoch in other:
        assert one[epoch]["groups"] == other[epoch]["groups"]
        a, b = values(one[epoch]), values(other[epoch])
        assert a.keys() == b.keys()
        for name, value in a.items():
            torch.testing.assert_close(value, b[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed"])
@pytest.mark.parametrize("strategy", ["auto", "sharded"])
def test_phases_hold_and_resume_on_one_gpu(tmp_path: Path, precision: str, strategy: str) -> None:
    if (strategy, precision) == ("sharded", "16-mixed"):
        pytest.skip("Lightning has no loss scaling under ModelParallelStrategy")
    case: dict[str, Any] = {
        "trainer": {**GPU, "devices": 1, "precision": precision},
        "strategy": "auto" if strategy == "auto" else ONE,
    }

    resumed_case = {**case, "ckpt_path": "whole-mid.ckpt"}
    run(tmp_path, {"whole": {**case, "saves": 5}, "resumed": resumed_case}, ranks=1)

    unbroken, resumed = epochs(tmp_path, "whole"), epochs(tmp_path, "resumed")
    for epoch in (1, 2):
        before, now = unbroken[epoch - 1]["weights"], unbroken[epoch]["weights"]
        moved = {name for name, value in now.items() if not torch.equal(value, before[name])}
        statistics = {name for name in moved if "running" in name or "num_batches" in name}
        assert moved - statistics == set(unbroken[epoch]["trains"])
        assert not any("stem" in name for name in statistics)
        assert set(unbroken[epoch]["state"]) == set(unbroken[epoch]["trains"])
    assert list(resumed) == [1, 2]
    assert_close(unbroken, resumed)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_shards_on_two_gpus_train_what_ddp_trains(tmp_path: Path, precision: str) -> None:
    case: dict[str, Any] = {"trainer": {**GPU, "precision": precision}}
    folder = {"save_distributed_checkpoint": True}
    run(
        tmp_path,
        {
            "ddp": {**case, "strategy": "ddp"},
            "sharded": {**case, "saves": 5, "strategy": folder},
            "resumed": {**case, "ckpt_path": "sharded-mid.ckpt", "strategy": folder},
        },
    )

    for rank in (0, 1):
        assert_close(epochs(tmp_path, "ddp", rank), epochs(tmp_path, "sharded", rank))
        assert_close(epochs(tmp_path, "sharded", rank), epochs(tmp_path, "resumed", rank))

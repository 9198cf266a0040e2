"""What every test starts from: one thread, one seed and a folder of its own."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch, and for the processes a test starts

import pytest
import torch

torch.set_num_threads(1)  # the networks here are tiny: a second thread only waits


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.accelerator.is_available():
        pytest.skip("needs an accelerator")


@pytest.fixture(autouse=True)
def _fresh_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test writes without saying where goes to its `tmp_path`, and chance is the same."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real pictures and weights, on the machines that have one."""
    folder = os.environ.get("LIT_FINETUNE_DATA")
    if folder is None:
        pytest.skip("needs real pictures and weights: set LIT_FINETUNE_DATA to their folder")
    return Path(folder)

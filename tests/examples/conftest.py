"""Runs of whole networks leave checkpoints behind: away with them."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _leave_nothing(tmp_path: Path) -> Iterator[None]:
    yield
    shutil.rmtree(tmp_path)

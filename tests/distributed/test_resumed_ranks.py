"""What two processes have trained, stopped and gone on with is what they would have trained."""

import json
from pathlib import Path

import pytest

from tests.distributed.ranks import run_ranks
from tests.distributed.resumed_rank_runs import main

RUNS = [
    ("plateau phases", "time", [10]),
    ("averaged", "3 steps", [8]),
    ("averaged in the end", "3 steps", [8]),
    ("mixed", "each epoch", [6]),
    ("prefixes", "3 steps", [6, 15]),
    ("views", "an epoch's last batch", [8]),
    ("pictures on disk", "3 steps", [10]),
]


@pytest.mark.sweep
def test_two_processes_go_on_as_if_they_had_never_stopped(tmp_path: Path) -> None:
    run_ranks(main, tmp_path, RUNS, folder=tmp_path)

    for rank in (0, 1):
        seen = json.loads((tmp_path / f"{rank}.json").read_text())
        assert len(seen) == len(RUNS)
        assert not any(seen.values()), seen

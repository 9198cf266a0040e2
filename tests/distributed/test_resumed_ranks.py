"""What two processes have trained, stopped and gone on with is what they would have trained."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("resumed_rank_runs.py")
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
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(tmp_path), json.dumps(RUNS)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )

    assert done.returncode == 0, done.stderr[-3000:]
    for rank in (0, 1):
        seen = json.loads((tmp_path / f"{rank}.json").read_text())
        assert len(seen) == len(RUNS)
        assert not any(seen.values()), seen

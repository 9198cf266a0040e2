"""A signal to one of several processes ends them all, and all go on from the step that is kept."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.interrupted_runs import main
from tests.distributed.ranks import run_ranks

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("interrupted_early.py")


@pytest.mark.long
def test_a_signal_to_one_process_ends_both_and_both_go_on(tmp_path: Path) -> None:
    run_ranks(main, tmp_path, folder=tmp_path)

    for rank in (0, 1):
        seen = json.loads((tmp_path / f"{rank}.json").read_text())
        assert not any(seen["differences"].values()), seen
        assert seen["exit"] == 143


@pytest.mark.sweep
@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize("hook", ["on_fit_start", "on_validation_batch_end"])
def test_before_the_first_step_a_signal_to_one_process_ends_both(
    tmp_path: Path, rank: str, hook: str
) -> None:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(tmp_path), rank, hook],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )

    # The first process ends the other one; of the other, Lightning notices that it is gone.
    assert done.returncode == 143 if rank == "0" else done.returncode != 0
    assert ("nothing was trained" in done.stderr) == (rank == "0")

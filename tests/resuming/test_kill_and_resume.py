"""A run that is killed at any moment goes on from `last.ckpt` to where it would have ended."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_finetune import FinetuneClassifier
from lit_finetune.cli.command_line import main
from tests.distributed.ranks import start

ROOT = Path(__file__).parents[2]
PHASES = ("training head", "training layer3", "training layer2, layer1")
WORDS = [
    *("fit", "--config", str(ROOT / "configs/quickstart.yaml")),
    *("--model.weights", str(ROOT / "examples/digits_0_to_4.safetensors")),
    *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
    *("--trainer.enable_model_summary", "false", "--trainer.default_root_dir"),
]


@pytest.fixture(autouse=True)
def _as_from_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):  # set by `seed_everything`
        monkeypatch.setenv(name, "0")


def last_checkpoint(folder: Path) -> Path:
    return folder / "lightning_logs/version_0/checkpoints/last.ckpt"


def kill_in_phase(folder: Path, phase: str, delay: float, *words: str) -> None:
    """Start a run, and kill it a moment after a phase has begun and a checkpoint is there."""
    folder.mkdir()
    log = folder / "log.txt"
    process = start(main, FinetuneClassifier, [*WORDS, str(folder), *words], folder=folder, log=log)
    try:
        limit = time.monotonic() + 120
        while (
            not log.exists() or phase not in log.read_text() or not last_checkpoint(folder).exists()
        ):
            assert process.is_alive(), log.read_text()
            assert time.monotonic() < limit
            time.sleep(0.005)
        time.sleep(delay)
    finally:
        process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "the run had ended before"


def finish(folder: Path, *words: str) -> dict[str, Any]:
    """The last checkpoint of a run to the end, as plain data but for its callbacks' paths."""
    main(args=[*WORDS, str(folder), *words])
    content = torch.load(last_checkpoint(folder), weights_only=True)
    keys = ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step")
    freezing = content["callbacks"]["FreezeUnfreezeCallback"]
    return plain({"freezing": freezing, **{key: content[key] for key in keys}})


def plain(value: Any) -> Any:
    """Numbers for tensors, so that `==` compares to the last bit."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value.tolist() if isinstance(value, Tensor) else value


@pytest.mark.slow
def test_a_run_killed_amid_unfreezing_ends_as_if_it_never_was(tmp_path: Path) -> None:
    short = ("--trainer.max_epochs", "5", "--trainer.limit_val_batches", "2")
    kill_in_phase(tmp_path / "killed", PHASES[1], random.uniform(0, 0.2), *short)
    checkpoint = str(last_checkpoint(tmp_path / "killed"))

    resumed = finish(tmp_path / "resumed", *short, "--ckpt_path", checkpoint)

    assert resumed == finish(tmp_path / "whole", *short)


@pytest.mark.sweep
def test_runs_killed_at_twenty_random_moments_end_as_if_they_never_were(tmp_path: Path) -> None:
    program = ROOT / "tests/resuming/killed_runs.py"
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path), "20"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    kills = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    assert len(kills) == 20, done.stderr[-3000:]
    assert [kill for kill in kills if kill["different"]] == []

"""Ctrl-C and SIGTERM keep the step that was reached, and a run goes on from there."""

import signal
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging

from tests.resumed_runs import Signal, Situation, compare, run

AVERAGED = {"callbacks": lambda: [EMAWeightAveraging(decay=0.7)]}
TWO = {"trainer": {"accumulate_grad_batches": 2}}
TIMES = {"trainer": {"val_check_interval": 2}}
LONG_AGO = {"train_time_interval": timedelta(days=1)}
"""A checkpoint that is never due."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hook", "batch", "signum", "kind", "step"),
    [
        ("on_train_batch_end", 7, signal.SIGINT, {}, 8),
        ("on_train_batch_start", 7, signal.SIGTERM, {}, 8),
        ("on_train_batch_end", 7, signal.SIGINT, TWO, 5),  # amid a step: 2 of epoch 0 and 2
        ("on_train_batch_end", 9, signal.SIGINT, TIMES, 10),  # an epoch's last batch
        ("on_validation_batch_start", 9, signal.SIGINT, AVERAGED, 10),
        ("on_validation_batch_start", 6, signal.SIGTERM, TIMES, 7),
    ],
)
def test_the_step_that_was_reached_is_kept(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    hook: str,
    batch: int,
    signum: int,
    kind: dict[str, Any],
    step: int,
) -> None:
    situation = Situation(keep=LONG_AGO, **kind)

    assert compare(situation, tmp_path, Signal(hook, batch, signum)) == []
    said = capsys.readouterr().err
    assert f"after step {step}, which is kept in {tmp_path}/broken/last.ckpt. To go on: " in said


@pytest.mark.parametrize(
    ("signum", "times", "status", "is_kept"),
    [(signal.SIGINT, 1, 130, True), (signal.SIGTERM, 1, 143, True), (signal.SIGINT, 2, 130, False)],
)
def test_the_exit_status_is_the_signals_and_a_second_one_quits_at_once(
    tmp_path: Path, signum: int, times: int, status: int, is_kept: bool
) -> None:
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    stop = Signal("on_train_batch_end", 2, signum, times)
    end, _ = run(Situation(keep=LONG_AGO), tmp_path, stop=stop)

    assert end == {"exit": status}
    assert (tmp_path / "last.ckpt").exists() == is_kept
    if is_kept:
        assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_an_error_is_no_interruption(tmp_path: Path) -> None:
    run(Situation(keep=LONG_AGO), tmp_path, stop=3)

    assert not (tmp_path / "last.ckpt").exists()

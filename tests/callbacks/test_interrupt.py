"""Ctrl-C and SIGTERM keep the step that was reached, and a run goes on from there."""

import os
import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lit_finetune import FinetuneClassifier
from lit_finetune.callbacks import (
    FreezeUnfreezeCallback,
    FrozenPrefixCache,
    LastCheckpoint,
    LinearProbe,
)
from tests.resuming.resumed_runs import Net, Signal, Situation, compare, run

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
    output = capsys.readouterr().err
    assert f"after step {step}, which is kept in {tmp_path}/broken/last.ckpt. To resume: " in output


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


class SignalEarly(Callback):
    """Send this program a signal before anything is trained."""

    def __init__(self, hook: str, signum: int) -> None:
        self.signum = signum
        setattr(self, hook, self._send)

    def _send(self, *_: Any, **__: Any) -> None:
        if self.signum:
            os.kill(os.getpid(), self.signum)
        self.signum = 0


@pytest.mark.parametrize(
    "hook", ["on_fit_start", "on_sanity_check_start", "on_validation_batch_end"]
)
@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 1)])
def test_before_the_first_step_a_signal_ends_the_program_at_once(
    tmp_path: Path, hook: str, signum: int, status: int
) -> None:
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    end, rows = run(Situation(), tmp_path, stop=SignalEarly(hook, signum))

    assert end == {"exit": status}
    assert not any("train" in name for _, name in rows)
    assert not (tmp_path / "last.ckpt").exists()
    signal.signal(signal.SIGINT, handlers[0])  # Lightning leaves it to nobody
    assert signal.getsignal(signal.SIGTERM) == handlers[1]


class SignalDuringPass(TensorDataset):
    """Send this program a signal when so many pictures were asked for."""

    def __init__(self, count: int, signum: int, *tensors: Tensor) -> None:
        super().__init__(*tensors)
        self.count, self.signum = count, signum

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        self.count -= 1
        if self.count == 0:
            os.kill(os.getpid(), self.signum)
        return super().__getitem__(index)


@pytest.mark.parametrize(
    ("kind", "signum", "status", "asked"),
    [
        (FrozenPrefixCache, signal.SIGTERM, 143, 24),
        (FrozenPrefixCache, signal.SIGINT, 130, 24),
        (LinearProbe, signal.SIGTERM, 143, 20),
    ],
)
def test_a_pass_over_all_pictures_ends_with_the_batch_in_which_the_signal_comes(
    tmp_path: Path, kind: Callable[[], Callback], signum: int, status: int, asked: int
) -> None:
    tensors = torch.randn(120, 3, 10, 10), torch.arange(120) % 3
    dataset = SignalDuringPass(20, signum, *tensors)
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[LastCheckpoint(tmp_path), FreezeUnfreezeCallback({0: "head"}), kind()],
    )
    model = FinetuneClassifier(Net(), num_classes=3)

    with pytest.raises(SystemExit) as end:
        trainer.fit(model, DataLoader(dataset, 8))

    assert end.value.code == status
    assert 20 - dataset.count < asked + 8
    if kind is FrozenPrefixCache:
        resumed = Trainer(
            max_epochs=1, accelerator="cpu", logger=False, callbacks=trainer.callbacks
        )
        resumed.fit(model, DataLoader(dataset, 8), ckpt_path=tmp_path / "last.ckpt")
        assert resumed.global_step == 15


def test_an_error_is_no_interruption(tmp_path: Path) -> None:
    run(Situation(keep=LONG_AGO), tmp_path, stop=3)

    assert not (tmp_path / "last.ckpt").exists()

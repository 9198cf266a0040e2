"""Trainings that are killed at random moments, resumed, and held against one that never was.

Run as a program: `killed_runs.py FOLDER KILLS`. It prints a line of JSON for each kill: the `case`,
the optimizer's `step` and the `phase` of the checkpoint that was left, and what of the resumed run
is `different` in the end. Each training is a fork of this process, which has imported everything.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from lit_finetune import FinetuneClassifier
from lit_finetune.callbacks import BestCheckpoint, FreezeUnfreezeCallback, LastCheckpoint
from lit_finetune.datamodules import DigitsDataModule
from tests.callbacks.test_resume import GRADUAL, Metrics, as_seen_by, differences, make_network

EPOCHS, BATCHES = 4, 7
MOVES = [
    {"modules": "head", "warmup_steps": 3},
    {"step": 4, "modules": "layer2", "lr_scale": 0.5, "warmup_steps": 6},
    {
        "on_plateau": {"monitor": "val/loss", "patience": 1, "min_delta": 0.5, "max_epochs": 2},
        "modules": "layer1",
        "restore_best": True,
    },
    {"at": 0.8, "freeze": "layer2"},
]
Case = dict[str, Any]
CASES: dict[str, Case] = {
    "epochs": {"schedule": GRADUAL, "keep": {}, "model": {}},
    "moves": {
        "schedule": MOVES,
        "keep": {"every_n_train_steps": 7},  # where a validation is due
        "model": {
            "optimizer": partial(SGD, momentum=0.9, nesterov=True),
            "lr_scheduler": partial(ReduceLROnPlateau, patience=0, threshold=0.5),
            "gradient_checkpointing": True,
        },
    },
    "accumulated": {
        "schedule": {0: "head", 1: "layer2", 2: "layer1"},
        "keep": {"every_n_train_steps": 5},
        "model": {
            "lr_scheduler": partial(OneCycleLR, max_lr=0.1, total_steps=EPOCHS * 4),
            "lr_scheduler_interval": "step",
        },
        "trainer": {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1},
        "average": True,
    },
    "train_bn": {
        "schedule": "gradual",
        "keep": {"every_n_train_steps": 6},
        "model": {"layer_decay": 0.7},
        "trainer": {"precision": "bf16-mixed"},
        "train_bn": True,
    },
}


def train(case: Case, folder: Path, *, ckpt_path: Path | None = None) -> None:
    """Train to the end, and write down all that there is."""
    seed_everything(1, verbose=False)
    settings = {"num_classes": 3, "drop_rate": 0.1, "mixup_alpha": 0.2, **case["model"]}
    model, metrics = FinetuneClassifier(make_network(), **settings), Metrics()
    best = BestCheckpoint(folder / "best", monitor="val/acc", mode="max", save_top_k=1)
    trainer = Trainer(
        max_epochs=EPOCHS,
        limit_train_batches=BATCHES,
        limit_val_batches=2,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[
            FreezeUnfreezeCallback(case["schedule"], train_bn=case.get("train_bn", False)),
            LastCheckpoint(folder, **case["keep"]),
            best,
            metrics,
            *([EMAWeightAveraging(decay=0.7)] if case.get("average") else []),
        ],
        **case.get("trainer", {}),
    )
    data = DigitsDataModule(digits=[0, 1, 2], batch_size=16, image_size=16, num_workers=0)
    trainer.fit(model, data, ckpt_path=ckpt_path, weights_only=True)
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    end = {
        "weights": model.state_dict(),
        "optimizer": trainer.optimizers[0].state_dict(),
        "schedulers": [[s.last_epoch, s.get_last_lr()] for s in schedulers],
        "best": best.best_model_score,
        "metrics": metrics.epochs,
    }
    torch.save(end, folder / "end.pt")


def in_a_fork(task: Callable[[], None]) -> int:
    """Start it in a process of its own, and return its id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        task()
        status = 0
    finally:
        sys.stderr.flush()
        os._exit(status)


def to_the_end(case: Case, folder: Path, ckpt_path: Path | None = None) -> dict[str, Any]:
    """A training that nobody kills: what it writes down."""
    folder.mkdir()
    _, status = os.waitpid(in_a_fork(lambda: train(case, folder, ckpt_path=ckpt_path)), 0)
    assert status == 0, "the training failed"
    return torch.load(folder / "end.pt", weights_only=True)


def kill_after(case: Case, folder: Path, delay: float) -> bool:
    """Start a training, and kill it so long after its first checkpoint; whether it still ran."""
    folder.mkdir()
    pid = in_a_fork(lambda: train(case, folder))
    wait_for(folder / "last.ckpt")
    time.sleep(delay)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status)


def wait_for(path: Path) -> float:
    """How many seconds it takes until there is a file."""
    start = time.monotonic()
    while not path.exists():
        assert time.monotonic() - start < 120, f"there is no {path}"
        time.sleep(0.001)
    return time.monotonic() - start


def unbroken(case: Case, folder: Path) -> tuple[dict[str, Any], float]:
    """What a run that nobody kills writes down, and how long it takes from its first checkpoint."""
    folder.mkdir()
    pid = in_a_fork(lambda: train(case, folder))
    wait_for(folder / "last.ckpt")
    seconds = wait_for(folder / "end.pt")
    os.waitpid(pid, 0)
    return torch.load(folder / "end.pt", weights_only=True), seconds


def resumed_after_a_kill(case: Case, folder: Path, length: float) -> tuple[Path, dict[str, Any]]:
    """The checkpoint that a run has left which was killed, and what its resumption ends with."""
    attempt = 0
    while not kill_after(case, folder / f"{attempt}", random.uniform(0, length)):
        attempt += 1
    checkpoint, place = folder / f"{attempt}/last.ckpt", folder / "resumed"
    place.mkdir()
    _, status = os.waitpid(in_a_fork(lambda: train(case, place, ckpt_path=checkpoint)), 0)
    assert status == 0, "it did not resume"
    return checkpoint, torch.load(place / "end.pt", weights_only=True)


def main(folder: Path, kills: int) -> None:
    """Kill so many runs, of one case after the other in turn."""
    wholes = {name: unbroken(case, folder / name) for name, case in CASES.items()}
    for index in range(kills):
        name = list(CASES)[index % len(CASES)]
        (place := folder / f"kill-{index}").mkdir()
        whole, length = wholes[name]
        checkpoint, resumed = resumed_after_a_kill(CASES[name], place, length)
        content = torch.load(checkpoint, weights_only=True)
        line = {
            "case": name,
            "step": content["global_step"],
            "phase": content["callbacks"]["FreezeUnfreezeCallback"]["phase"],
            "different": differences(as_seen_by(resumed, whole), resumed),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

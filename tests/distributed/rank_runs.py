"""Several trainings, one after another in the same processes; each writes down what it has.

A case is a name with `strategy` (arguments of DDPStrategy), `trainer` and `model` (further
arguments of the Trainer and of the classifier), `ckpt_path`, `wraps_once` for the reference,
`train_bn`, and `synchronised` for norms over all processes.

As a program: `rank_runs.py FOLDER CASES`, cases as JSON.
"""

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from lit_finetune import FinetuneClassifier
from lit_finetune.callbacks import FreezeUnfreezeCallback
from lit_finetune.datamodules import DigitsDataModule
from lit_finetune.freezing.freeze import set_trainable
from tests.distributed.synchronised import synchronised_on_cpu

SCHEDULE = {0: "head", 1: "layer2", 2: "layer1"}


class Net(nn.Module):
    """Three stages with batch statistics and dropout; the first is never trained here."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = self.stage(3, 4)
        self.layer1 = self.stage(4, 4)
        self.layer2 = self.stage(4, 8)
        self.fc = nn.Linear(8, 3)

    def stage(self, width: int, out: int) -> nn.Module:
        """A convolution and what follows it."""
        convolution = nn.Conv2d(width, out, 3, stride=2, padding=1)
        return nn.Sequential(convolution, nn.BatchNorm2d(out), nn.ReLU(), nn.Dropout(0.1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From pictures to logits."""
        return self.fc(self.layer2(self.layer1(self.stem(x))).mean((2, 3)))


class WrappedOnce(FreezeUnfreezeCallback):
    """The reference: all require a gradient when they are wrapped, and nothing is wrapped again."""

    def _make_plan(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let DDP take note of every parameter."""
        if self.plan is not None:  # a resumed run asks once more
            return
        super()._make_plan(trainer, pl_module)
        self._as_planned = {n for n, p in pl_module.named_parameters() if p.requires_grad}
        set_trainable(pl_module, {name for name, _ in pl_module.named_parameters()})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Freeze only now."""
        set_trainable(pl_module, self._as_planned)
        super().on_train_start(trainer, pl_module)


class WriteDown(Callback):
    """Keep a checkpoint amid the second epoch, and what this process has at each epoch's end."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.epochs: dict[int, dict[str, Any]] = {}

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Save amid the epoch in which the second phase began."""
        if trainer.global_step == 5:
            trainer.save_checkpoint(f"{self.path}-mid.ckpt")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note all that there is."""
        self.epochs[trainer.current_epoch] = {
            "weights": {
                name: value.to("cpu", copy=True) for name, value in pl_module.state_dict().items()
            },
            "state": [
                {key: value.to("cpu", copy=True) for key, value in state.items()}
                for state in trainer.optimizers[0].state.values()
            ],
            "groups": [
                (group["name"], float(group["lr"])) for group in trainer.optimizers[0].param_groups
            ],
        }

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note what was measured of the epoch before, when all of it is known."""
        if written := self.epochs.get(trainer.current_epoch - 1):
            metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
            metrics.pop("train/loss_step", None)  # of this process alone
            written["metrics"] = metrics

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write all to a file."""
        self.on_train_epoch_start(trainer, pl_module)
        torch.save(self.epochs, f"{self.path}-rank{trainer.global_rank}.pt")


def train(folder: Path, name: str, case: dict[str, Any]) -> None:
    """One case."""
    seed_everything(0, verbose=False)
    make = WrappedOnce if case.get("wraps_once") else FreezeUnfreezeCallback
    name_of_run = sys.modules[FreezeUnfreezeCallback.__module__].ScheduleRun.__module__
    run_module = sys.modules[name_of_run]
    rewrap = run_module.rewrap
    if case.get("wraps_once"):
        run_module.rewrap = lambda *_: None
    settings = {"num_classes": 3, "lr": 0.01, "backbone_lr_ratio": 0.5, **case.get("model", {})}
    model = FinetuneClassifier(Net(), **settings)
    options = {
        "sync_batchnorm": case.get("synchronised", False),
        "max_epochs": 3,
        "limit_train_batches": 3,
        "limit_val_batches": 1,
        "accelerator": "cpu",
        "devices": 2,
        "strategy": DDPStrategy(**case.get("strategy", {})),
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": [make(SCHEDULE, case.get("train_bn", False)), WriteDown(str(folder / name))],
    }
    trainer = Trainer(**{**options, **case.get("trainer", {})})
    data = DigitsDataModule(digits=[0, 1, 2], batch_size=8, image_size=16, num_workers=0)
    ckpt_path = str(folder / case["ckpt_path"]) if "ckpt_path" in case else None
    with synchronised_on_cpu() if case.get("synchronised") else nullcontext():
        trainer.fit(model, data, ckpt_path=ckpt_path, weights_only=True)
    run_module.rewrap = rewrap


def main(folder: Path, cases: dict[str, dict[str, Any]]) -> None:
    """All cases."""
    for name, case in cases.items():
        train(folder, name, case)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))

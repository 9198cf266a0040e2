"""Recomputed activations change nothing of a run in phases but its memory."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor, nn
from torch.optim import SGD

from lit_finetune import FinetuneClassifier
from lit_finetune.callbacks import FreezeUnfreezeCallback
from lit_finetune.datamodules import DigitsDataModule


class Unit(nn.Module):
    """A residual unit with statistics and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
        self.norm, self.drop = nn.BatchNorm2d(4), nn.Dropout(0.3)
        self.runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return x + self.drop(self.two(torch.relu(self.norm(self.one(x)))))


class Net(nn.Module):
    """A stem, two stages of two units and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)
        self.layer1, self.layer2 = (nn.Sequential(Unit(), Unit()) for _ in range(2))
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer2(self.layer1(self.conv(x))).mean((2, 3)))


class Runs(Callback):
    """How often each stage runs in a batch of each epoch, and a checkpoint amid the second."""

    def __init__(self, path: Path) -> None:
        self.seen: list[tuple[int, int]] = []
        self.path = path

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.before = self.count(pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        now = zip(self.count(pl_module), self.before, strict=True)
        one, two = (after - before for after, before in now)
        self.seen.append((one, two))
        if trainer.global_step == 5:
            trainer.save_checkpoint(self.path)

    def count(self, pl_module: LightningModule) -> list[int]:
        return [pl_module.backbone.layer1[0].runs, pl_module.backbone.layer2[0].runs]


def fit(
    runs: Runs, *callbacks: Callback, recomputes: bool, train_bn: bool = False, **options: Any
) -> dict[str, Any]:
    """Three epochs of three batches; weights, statistics and the optimizer's state."""
    seed_everything(0, verbose=False)
    model = FinetuneClassifier(
        Net(),
        num_classes=3,
        lr=0.1,
        optimizer=partial(SGD, momentum=0.9),
        gradient_checkpointing=recomputes,
    )
    ckpt_path = options.pop("ckpt_path", None)
    trainer = Trainer(
        max_epochs=3,
        limit_train_batches=3,
        limit_val_batches=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            FreezeUnfreezeCallback({0: "head", 1: "layer2", 2: "layer1"}, train_bn=train_bn),
            runs,
            *callbacks,
        ],
        **options,
    )
    data = DigitsDataModule(digits=[0, 1, 2], batch_size=16, image_size=16, num_workers=0)
    trainer.fit(model, data, ckpt_path=ckpt_path, weights_only=True)
    state = trainer.optimizers[0].state_dict()["state"]
    momentum = {f"{key}.momentum": value["momentum_buffer"] for key, value in state.items()}
    return {**model.state_dict(), **momentum}


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


BESIDE: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "alone": ([], {}),
    "accumulated and clipped": ([], {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}),
    "bf16": ([], {"precision": "bf16-mixed"}),
    "norms that train": ([], {"train_bn": True}),
    "moving average": ([partial(EMAWeightAveraging, decay=0.5)], {}),
}


@pytest.mark.parametrize("name", BESIDE)
def test_a_run_that_recomputes_ends_with_the_same_bits(tmp_path: Path, name: str) -> None:
    others, options = BESIDE[name]
    ends = [
        fit(Runs(tmp_path / "x"), *(make() for make in others), recomputes=flag, **options)
        for flag in (False, True)
    ]

    assert differing(*ends) == []


def test_only_what_has_something_to_spare_runs_twice_in_each_phase(tmp_path: Path) -> None:
    runs = Runs(tmp_path / "x")
    fit(runs, recomputes=True)

    assert runs.seen == [(1, 1)] * 3 + [(1, 2)] * 3 + [(2, 2)] * 3


def test_a_run_may_be_resumed_with_and_without(tmp_path: Path) -> None:
    path = tmp_path / "mid.ckpt"
    whole = fit(Runs(path), recomputes=False)
    assert differing(whole, fit(Runs(tmp_path / "x"), recomputes=True, ckpt_path=path)) == []


def test_a_checkpoint_remembers_the_switch(tmp_path: Path) -> None:
    fit(Runs(tmp_path / "mid.ckpt"), recomputes=True)
    model = FinetuneClassifier.load_from_checkpoint(tmp_path / "mid.ckpt", backbone=Net())
    model(torch.randn(2, 3, 16, 16)).sum().backward()

    assert model.backbone.layer1[0].runs == 2

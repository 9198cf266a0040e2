"""A run that was stopped and resumed ends exactly where an unbroken one does."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau, SequentialLR, StepLR

from lit_finetune import FinetuneClassifier
from lit_finetune.callbacks import FreezeUnfreezeCallback
from lit_finetune.datamodules import DigitsDataModule

GRADUAL = {0: "head", 1: "layer2", 3: {"modules": "layer1", "lr_scale": 0.05}}
EPOCHS = 4
BATCHES = 4


def make_network() -> nn.Module:
    """Two stages with what makes resuming hard: batch statistics and dropout."""
    stage = partial(nn.Conv2d, kernel_size=3, stride=2, bias=False)
    network = nn.Module()
    network.layer1 = nn.Sequential(stage(3, 4), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2))
    network.layer2 = nn.Sequential(stage(4, 8), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2))
    network.fc = nn.Linear(8, 3)
    network.forward = lambda x: network.fc(network.layer2(network.layer1(x)).mean((2, 3)))
    return network


def sequential(optimizer: torch.optim.Optimizer) -> SequentialLR:
    parts = [StepLR(optimizer, 1, 0.5), StepLR(optimizer, 1, 0.9)]
    return SequentialLR(optimizer, parts, milestones=[2])


class SaveEverywhere(Callback):
    """A checkpoint amid each epoch, after its validation, and at its end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, trainer: Trainer, when: str) -> None:
        trainer.save_checkpoint(self.folder / f"{when}-{trainer.current_epoch}.ckpt")

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step % BATCHES == 3:
            self.save(trainer, "mid")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.save(trainer, "val")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer, "end")


class Metrics(Callback):
    """What was measured of each epoch."""

    def __init__(self) -> None:
        self.epochs: dict[int, dict[str, float]] = {}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        measured = {name: value.item() for name, value in trainer.callback_metrics.items()}
        if measured:  # else the run begins or goes on here
            self.epochs[trainer.current_epoch - 1] = measured

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_train_epoch_start(trainer, pl_module)


def run(folder: Path, *, ckpt_path: Path | None = None, **options: Any) -> dict[str, Any]:
    """Train, keep a checkpoint of each epoch and one amid each, and return what came out."""
    seed_everything(1, verbose=False)
    model = FinetuneClassifier(
        make_network(), num_classes=3, drop_rate=0.1, mixup_alpha=0.2, **options
    )
    trainer = Trainer(
        max_epochs=EPOCHS,
        limit_train_batches=BATCHES,
        limit_val_batches=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[
            FreezeUnfreezeCallback(GRADUAL),
            SaveEverywhere(folder),
            metrics := Metrics(),
        ],
    )
    data = DigitsDataModule(digits=[0, 1, 2], batch_size=16, image_size=16, num_workers=0)
    trainer.fit(model, data, ckpt_path=ckpt_path, weights_only=True)
    return {
        "weights": model.state_dict(),
        "optimizer": trainer.optimizers[0].state_dict(),
        "rates": [group["lr"] for group in trainer.optimizers[0].param_groups],
        "metrics": metrics.epochs,
    }


def differences(left: Any, right: Any, where: str = "") -> list[str]:
    """The places where two nested results are not the same to the last bit."""
    if isinstance(left, dict) and isinstance(right, dict):
        keys = left.keys() | right.keys()
        return [
            d for key in keys for d in differences(left.get(key), right.get(key), f"{where}/{key}")
        ]
    if isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        pairs = enumerate(zip(left, right, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{where}/{i}")]
    same = torch.equal(left, right) if isinstance(left, Tensor) else left == right
    return [] if same else [where]


def as_seen_by(resumed: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    """A run without the metrics that were known when another began."""
    measured = {
        epoch: {name: whole["metrics"][epoch][name] for name in names}
        for epoch, names in resumed["metrics"].items()
    }
    return {**whole, "metrics": measured}


OPTIONS: dict[str, dict[str, Any]] = {
    "adamw-cosine": {},
    "sgd-onecycle": {
        "optimizer": partial(SGD, momentum=0.9),
        "lr_scheduler": partial(OneCycleLR, max_lr=0.1, total_steps=EPOCHS * BATCHES),
        "lr_scheduler_interval": "step",
    },
    "sgd-plateau": {
        "optimizer": partial(SGD, momentum=0.9, nesterov=True),
        "lr_scheduler": partial(ReduceLROnPlateau, patience=0, threshold=0.5),
    },
    "adamw-sequential": {"lr_scheduler": sequential, "layer_decay": 0.7},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_a_run_resumed_anywhere_ends_like_an_unbroken_one(tmp_path: Path, name: str) -> None:
    whole = run(tmp_path / "whole", **OPTIONS[name])
    checkpoints = sorted((tmp_path / "whole").glob("*.ckpt"))
    assert len(checkpoints) == 3 * EPOCHS

    checkpoints.remove(tmp_path / "whole" / f"end-{EPOCHS - 1}.ckpt")  # nothing is left to train
    for checkpoint in checkpoints:
        resumed = run(tmp_path / checkpoint.stem, ckpt_path=checkpoint, **OPTIONS[name])
        assert len(resumed["metrics"]) >= EPOCHS - 1 - int(checkpoint.stem[-1])
        assert differences(as_seen_by(resumed, whole), resumed) == [], checkpoint.name


def test_the_comparison_sees_a_difference() -> None:
    assert differences({"a": [torch.tensor(1.0)]}, {"a": [torch.tensor(2.0)]}) == ["/a/0"]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    run(tmp_path)
    return tmp_path / "end-1.ckpt"


def resume_with(checkpoint: Path, callbacks: list[Any]) -> None:
    model = FinetuneClassifier(make_network(), num_classes=3, drop_rate=0.1, mixup_alpha=0.2)
    trainer = Trainer(
        max_epochs=EPOCHS, logger=False, enable_checkpointing=False, callbacks=callbacks
    )
    data = DigitsDataModule(digits=[0, 1, 2], batch_size=16, image_size=16, num_workers=0)
    trainer.fit(model, data, ckpt_path=checkpoint, weights_only=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FreezeUnfreezeCallback({0: "head", 2: "layer2"}), "another schedule"),
        (lambda: FreezeUnfreezeCallback(GRADUAL, train_bn=True), "train_bn=False"),
    ],
)
def test_a_checkpoint_of_another_schedule_is_refused(
    checkpoint: Path, make: Callable[[], FreezeUnfreezeCallback], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        resume_with(checkpoint, [make()])


def test_a_checkpoint_holds_plain_data_alone(checkpoint: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)

    assert content["lit_finetune"]["classes"] == ["0", "1", "2"]
    assert content["callbacks"]["FreezeUnfreezeCallback"]["phase"] == 1

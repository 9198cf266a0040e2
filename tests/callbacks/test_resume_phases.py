"""A run that is stopped and resumed moves on at the same steps and plateaus, bit for bit."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR

from lit_finetune import FinetuneClassifier
from lit_finetune.callbacks import FreezeUnfreezeCallback
from lit_finetune.datamodules import DigitsDataModule
from tests.callbacks.test_resume import differences, make_network

EPOCHS, BATCHES = 5, 4
SCHEDULE: list[dict[str, Any]] = [
    {"modules": "head", "warmup_steps": 3},
    {"step": 3, "modules": "layer2", "lr_scale": 0.5, "warmup_steps": 4},
    {
        "on_plateau": {"monitor": "val/loss", "patience": 1, "min_delta": 0.5, "max_epochs": 3},
        "modules": "layer1",
        "restore_best": True,
    },
    {"at": 0.75, "freeze": "layer2"},
    {"epoch": 4, "modules": "layer2", "freeze": "head", "warmup_steps": 2},
]


class SaveEverywhere(Callback):
    """A checkpoint after every other batch, after each validation, and at each epoch's end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, trainer: Trainer, when: str) -> None:
        trainer.save_checkpoint(self.folder / f"{trainer.global_step:02}-{when}.ckpt")

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step % 2:
            self.save(trainer, "batch")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.save(trainer, "validation")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer, "epoch")


def run(folder: Path, *, ckpt_path: Path | None = None, **options: Any) -> dict[str, Any]:
    seed_everything(1, verbose=False)
    callback = FreezeUnfreezeCallback(SCHEDULE)
    model = FinetuneClassifier(make_network(), num_classes=3, drop_rate=0.1, **options)
    trainer = Trainer(
        max_epochs=EPOCHS,
        limit_train_batches=BATCHES,
        limit_val_batches=1,
        val_check_interval=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback, *([] if ckpt_path else [SaveEverywhere(folder)])],
    )
    data = DigitsDataModule(digits=[0, 1, 2], batch_size=16, image_size=16, num_workers=0)
    trainer.fit(model, data, ckpt_path=ckpt_path, weights_only=True)
    return {
        "weights": model.state_dict(),
        "optimizer": trainer.optimizers[0].state_dict(),
        "phases": callback.state_dict(),
    }


OPTIONS: dict[str, dict[str, Any]] = {
    "adamw-cosine": {},
    "sgd-onecycle": {
        "optimizer": partial(SGD, momentum=0.9),
        "lr_scheduler": partial(OneCycleLR, max_lr=0.1, total_steps=EPOCHS * BATCHES),
        "lr_scheduler_interval": "step",
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_a_run_resumed_anywhere_ends_like_an_unbroken_one(tmp_path: Path, name: str) -> None:
    whole = run(tmp_path, **OPTIONS[name])
    assert whole["phases"]["phase"] == len(SCHEDULE) - 1
    began = [step for _, step in whole["phases"]["progress"]["began"]]
    assert began[:2] + began[3:] == [0, 3, 15, 16]
    checkpoints = sorted(tmp_path.glob("*.ckpt"))
    assert len(checkpoints) == EPOCHS * (BATCHES + 1)
    kept = [torch.load(path, weights_only=True)["callbacks"] for path in checkpoints]
    assert any("best_weights" in state["FreezeUnfreezeCallback"] for state in kept)

    for checkpoint in checkpoints[:-2]:  # after the last two nothing is left to train
        resumed = run(tmp_path, ckpt_path=checkpoint, **OPTIONS[name])
        assert differences(whole, resumed) == [], checkpoint.name


def test_another_schedule_is_refused_with_when_its_phases_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path)
    changed = [SCHEDULE[0], {**SCHEDULE[1], "step": 4}, *SCHEDULE[2:]]
    monkeypatch.setattr("tests.callbacks.test_resume_phases.SCHEDULE", changed)
    message = "began at epoch 0, step 3; those of this run at epoch 0, step 4"
    with pytest.raises(ValueError, match=message):
        run(tmp_path, ckpt_path=tmp_path / "05-batch.ckpt")

"""Subclasses that override a hook without calling the classifier's, and those that call it."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from lit_finetune import FinetuneClassifier
from tests.resuming.resumed_runs import Net, differences

HOOKS = (
    "on_fit_start",
    "on_train_start",
    "on_train_epoch_start",
    "on_train_epoch_end",
    "on_train_batch_start",
    "on_save_checkpoint",
)


def with_hook(name: str, *, calls: bool) -> type[FinetuneClassifier]:
    """A subclass that overrides a hook, and calls the classifier's or not."""
    base = getattr(FinetuneClassifier, name)

    def hook(self: Any, *args: Any) -> None:
        if calls:
            base(self, *args)

    return type("Own", (FinetuneClassifier,), {name: hook})


def run(
    cls: type[FinetuneClassifier], folder: Path | None = None, ckpt_path: Path | None = None
) -> dict[str, Any]:
    """Train for two epochs of three batches, with a checkpoint after each step."""
    seed_everything(0, verbose=False)
    images, labels = torch.rand(12, 3, 10, 10), torch.arange(12) % 3
    keep = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=folder is not None,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[keep] if folder else [],
    )
    model = cls(Net(), num_classes=3, drop_rate=0.1)
    loader = DataLoader(TensorDataset(images, labels), batch_size=4, shuffle=True)
    trainer.fit(model, loader, ckpt_path=ckpt_path, weights_only=True)
    if folder:
        trainer.save_checkpoint(folder / "weights.ckpt", weights_only=True)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return {"weights": model.state_dict(), "metrics": metrics}


@cache
def plain() -> dict[str, Any]:
    """The run of the classifier itself."""
    return run(FinetuneClassifier)


@pytest.mark.parametrize("name", HOOKS)
def test_a_subclass_that_does_not_call_a_hook_trains_and_resumes_to_the_same_bits(
    tmp_path: Path, name: str
) -> None:
    cls = with_hook(name, calls=False)
    assert differences(plain(), run(cls, tmp_path)) == []
    assert {"train/loss", "train/acc"} <= plain()["metrics"].keys()
    for step in (2, 3):
        assert differences(plain(), run(cls, ckpt_path=tmp_path / f"step={step}.ckpt")) == []


@pytest.mark.parametrize("name", HOOKS)
def test_a_subclass_that_calls_a_hook_trains_to_the_same_bits(name: str) -> None:
    assert differences(plain(), run(with_hook(name, calls=True))) == []


@pytest.mark.parametrize("calls", [True, False])
def test_a_checkpoint_of_weights_alone_has_the_classes(tmp_path: Path, calls: bool) -> None:
    run(with_hook("on_train_start", calls=calls), tmp_path)
    FinetuneClassifier.load_from_checkpoint(tmp_path / "weights.ckpt", backbone=Net())

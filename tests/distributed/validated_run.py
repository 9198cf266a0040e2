"""Validate a network in one process or in two, and write down what was measured."""

import json
from pathlib import Path

from lightning.pytorch import Trainer, seed_everything

from lit_finetune import FinetuneClassifier
from lit_finetune.datamodules import DigitsDataModule


def main(file: Path, devices: int) -> None:
    """Validate 107 pictures, which two processes cannot share evenly."""
    seed_everything(0, verbose=False)
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = FinetuneClassifier("timm/test_resnet", num_classes=3)
    data = DigitsDataModule(digits=[0, 1, 2], batch_size=8, image_size=32)
    measured = trainer.validate(model, data, verbose=False)[0]
    if trainer.is_global_zero:
        file.write_text(json.dumps(measured))

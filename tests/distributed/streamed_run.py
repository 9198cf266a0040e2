"""A training on streamed pictures in two processes, each of which writes down what it saw."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from typing_extensions import override

from lit_finetune import FinetuneClassifier
from lit_finetune.datamodules import StreamingImageDataModule


class WriteDown(Callback):
    """Keep the pictures of each epoch, and of validation, as sums of their pixels."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trained: list[list[float]] = []
        self.validated: list[float] = []

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.trained.append([])

    @override
    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        self.trained[-1] += batch[0].sum((1, 2, 3)).tolist()

    @override
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validated = []

    @override
    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.validated += batch[0].sum((1, 2, 3)).tolist()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        weights = {name: value.clone() for name, value in pl_module.named_parameters()}
        content = {"trained": self.trained, "validated": self.validated, "weights": weights}
        torch.save(content, self.folder / f"rank{trainer.global_rank}.pt")


def main(folder: Path) -> None:
    """Train for two epochs."""
    seed_everything(0, verbose=False)
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[WriteDown(folder)],
    )
    data = StreamingImageDataModule(
        folder / "shards",
        image_size=16,
        resize_size=16,
        batch_size=4,
        num_workers=0,
        train_augmentation="none",
    )
    model = FinetuneClassifier("timm/test_resnet", num_classes=2, lr_scheduler="constant")
    trainer.fit(model, data)

"""A training that writes down, in each process and at each epoch's end, all that it has.

Run as a program: `two_processes.py FOLDER OPTIONS`, options as JSON: `strategy`, `trainer` (further
arguments of the Trainer), `schedule`, `devices`, `data` (further arguments of the data), `cache`
(arguments of FrozenPrefixCache; none without).
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from lit_finetune import FinetuneClassifier
from lit_finetune.callbacks import FreezeUnfreezeCallback, FrozenPrefixCache
from lit_finetune.datamodules import DigitsDataModule

SCHEDULE = {"0": "head", "1": "layer2", "2": "layer1"}


class Net(nn.Module):
    """Two stages with batch statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(4, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())
        self.fc = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From pictures to logits."""
        return self.fc(self.layer2(self.layer1(x)).mean((2, 3)))


class WriteDown(Callback):
    """Keep what this process has, and how many bytes its gradients took on the way."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.evaluated: list[int] = []

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        self.evaluated.append(len(batch[1]))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        wrapped = trainer.strategy.model
        in_buckets = wrapped._get_ddp_logging_data().get("bucket_sizes", "")
        content = {
            "weights": pl_module.state_dict(),
            "optimizer": trainer.optimizers[0].state_dict(),
            "trainable": [n for n, p in pl_module.named_parameters() if p.requires_grad],
            "evaluated": self.evaluated,
            "bytes": sum(int(size) for size in in_buckets.split(",") if size.strip()),
        }
        name = f"rank{trainer.global_rank}-epoch{trainer.current_epoch}.pt"
        torch.save(content, self.folder / name)


def main(folder: Path, options: dict[str, Any]) -> None:
    """Train, with as many processes as the options say."""
    seed_everything(0, verbose=False)
    model = FinetuneClassifier(Net(), num_classes=3, lr=0.01, backbone_lr_ratio=0.5)
    trainer = Trainer(
        max_epochs=3,
        limit_train_batches=3,
        accelerator="cpu",
        devices=options.get("devices", 2),
        strategy=DDPStrategy(**options.get("strategy", {})),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            FreezeUnfreezeCallback(options.get("schedule", SCHEDULE)),
            *([FrozenPrefixCache(**options["cache"])] if "cache" in options else []),
            WriteDown(folder),
        ],
        **options.get("trainer", {}),
    )
    data = DigitsDataModule(
        digits=[0, 1, 2], batch_size=8, image_size=16, **options.get("data", {})
    )
    trainer.fit(model, data)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))

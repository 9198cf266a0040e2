"""ResNet-18 on CIFAR-100: all layers, at one constant rate, with a line every 100 steps.

    python -m examples.resnet18_cifar100
    python -m examples.resnet18_cifar100 --data_dir data --weights DEFAULT

With `--data_dir` it downloads CIFAR-100 into that folder unless it is there. Without arguments it
takes random weights and drawings of 100 kinds: seconds.
From the command line: `configs/tutorial_resnet18_cifar100.yaml`.
"""

import time
from functools import partial
from typing import Any

import torch
from jsonargparse import auto_cli
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from examples.demo_data import shapes
from lit_finetune import FinetuneClassifier
from lit_finetune.datamodules import CIFARDataModule


def main(data_dir: str | None = None, *, weights: str | None = None, epochs: int = 1) -> Trainer:
    """Train the whole network, and return the Trainer.

    Args:
        data_dir: Folder of CIFAR-100; drawings if not given.
        weights: `DEFAULT` downloads those of ImageNet; or a file. Random ones if not given.
        epochs: Length of the run.
    """
    pictures: dict[str, Any] = {"mean": 0.5, "std": 0.5, "train_augmentation": "none"}
    data = (
        CIFARDataModule("cifar100", data_dir=data_dir, image_size=224, **pictures)
        if data_dir
        else shapes(num_classes=100, per_class=3, **pictures)
    )
    model = FinetuneClassifier(
        "resnet18",
        weights=weights,
        num_classes=data.num_classes,
        optimizer=partial(torch.optim.SGD, momentum=0.9),
        lr=0.001,
        backbone_lr_ratio=1.0,
        lr_scheduler="constant",
    )
    every = 100 if data_dir else 10
    trainer = Trainer(
        max_epochs=epochs, log_every_n_steps=every, callbacks=[PrintRunningLoss(every)]
    )
    trainer.fit(model, data)
    return trainer


class PrintRunningLoss(Callback):
    """Print every few steps the mean of their losses, and the time they took."""

    def __init__(self, every: int = 100) -> None:
        self.every = every
        self.losses: list[torch.Tensor] = []
        self.start = 0.0

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.losses, self.start = [], time.monotonic()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(outputs["loss"])
        if len(self.losses) == self.every:
            loss, now = torch.stack(self.losses).mean().item(), time.monotonic()
            print(
                f"epoch {trainer.current_epoch}, step {batch_idx + 1}:"
                f" loss {loss:.3f}, {now - self.start:.1f} s"
            )
            self.losses, self.start = [], now


if __name__ == "__main__":
    auto_cli(main, as_positional=False)

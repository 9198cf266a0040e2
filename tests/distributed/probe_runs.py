"""A linear probe and an epoch of training after it, written down by each process."""

from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import nn

from lit_finetune import FinetuneClassifier
from lit_finetune.callbacks import FreezeUnfreezeCallback, LinearProbe
from lit_finetune.datamodules import DigitsDataModule


class Net(nn.Module):
    """A stage with batch statistics, and a ReLU behind the head."""

    def __init__(self) -> None:
        super().__init__()
        convolution = nn.Conv2d(3, 12, 3, stride=2, padding=1)
        self.layer1 = nn.Sequential(convolution, nn.BatchNorm2d(12), nn.ReLU(), nn.Dropout(0.1))
        self.fc = nn.Conv2d(12, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From pictures to logits."""
        return self.fc(self.layer1(x)).relu().mean((2, 3))


class WriteDown(Callback):
    """Keep what this process has after the probe, and after an epoch."""

    def __init__(self, path: Path, probe: LinearProbe) -> None:
        self.path, self.probe = path, probe

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the head."""
        assert self.probe.result is not None
        self.head = {name: p.detach().clone() for name, p in pl_module.named_parameters()}
        self.loss = self.probe.result.loss

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it all to a file."""
        trained = {name: p.detach().clone() for name, p in pl_module.named_parameters()}
        content = {"head": self.head, "loss": self.loss, "trained": trained}
        torch.save(content, self.path.with_name(f"{self.path.name}-{trainer.global_rank}.pt"))


def main(folder: Path, devices: int) -> None:
    """Probe and train."""
    seed_everything(0, verbose=False)
    model = FinetuneClassifier(Net(), num_classes=3, head_name="fc", lr=0.01)
    probe = LinearProbe()
    trainer = Trainer(
        max_epochs=1,
        limit_train_batches=0.5,
        limit_val_batches=0.9,
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            FreezeUnfreezeCallback("lp_ft"),
            probe,
            WriteDown(folder / f"{devices}", probe),
        ],
    )
    data = DigitsDataModule(digits=[0, 1, 2], batch_size=7, image_size=16, num_workers=0)
    trainer.fit(model, data)

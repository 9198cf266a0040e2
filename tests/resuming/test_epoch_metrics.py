"""What a module logs by `self.log(…, on_epoch=True)`, over an interruption of the epoch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from lit_finetune import FinetuneClassifier
from lit_finetune.callbacks import FreezeUnfreezeCallback

STEPS = 5


class Logs(LightningModule):
    """A module of a user's own, which logs in each way."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        self.accuracy = MulticlassAccuracy(3)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        logits = self.net(batch[0])
        loss = nn.functional.cross_entropy(logits, batch[1])
        log_all(self, loss, logits, batch[1])
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Subclass(FinetuneClassifier):
    """A classifier that logs more than it does by itself."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), num_classes=3)
        self.accuracy = MulticlassAccuracy(3)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        log_all(self, loss, self(batch[0]), batch[1])
        return loss


def log_all(module: Any, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
    loss = loss.detach()
    module.log("mean", loss, on_step=False, on_epoch=True)
    module.log("both", loss, on_step=True, on_epoch=True)
    module.log("largest", loss, on_step=False, on_epoch=True, reduce_fx="max")
    module.log("total", loss, on_step=False, on_epoch=True, reduce_fx="sum")
    module.accuracy(logits, labels)
    module.log("accuracy", module.accuracy, on_step=False, on_epoch=True)


class Noted(Callback):
    """The metrics of each epoch, as callbacks that monitor them see them."""

    def __init__(self) -> None:
        self.epochs: dict[int, dict[str, float]] = {}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pass

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.note(trainer, trainer.current_epoch - 1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.note(trainer, trainer.max_epochs - 1 if trainer.max_epochs else 0)

    def note(self, trainer: Trainer, epoch: int) -> None:
        names = ("mean", "both_epoch", "largest", "total", "accuracy")
        metrics = trainer.callback_metrics
        self.epochs[epoch] = {name: metrics[name].item() for name in names if name in metrics}


def run(module: LightningModule, folder: Path, ckpt_path: Path | None = None) -> dict[int, Any]:
    seed_everything(3, verbose=False)
    data = TensorDataset(torch.randn(4 * STEPS - 1, 4), torch.arange(4 * STEPS - 1) % 3)
    saves = ModelCheckpoint(
        folder, "{step}", every_n_train_steps=1, save_top_k=-1, save_on_train_epoch_end=False
    )
    noted = Noted()
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[noted, saves, FreezeUnfreezeCallback("full")],
    )
    trainer.fit(module, DataLoader(data, batch_size=4, shuffle=True), ckpt_path=ckpt_path)
    return noted.epochs


@pytest.mark.parametrize("kind", [Logs, Subclass])
def test_resumed_at_any_step_each_epoch_has_the_metrics_of_the_unbroken_run(
    kind: type[LightningModule], tmp_path: Path
) -> None:
    seed_everything(0, verbose=False)
    unbroken = run(kind(), tmp_path / "unbroken")
    for step in (1, STEPS - 1, STEPS, STEPS + 2, 2 * STEPS):
        seed_everything(1, verbose=False)
        resumed = run(kind(), tmp_path / str(step), tmp_path / f"unbroken/step={step}.ckpt")

        assert resumed[1] == unbroken[1], step
        if step <= STEPS:
            assert resumed[0] == unbroken[0], step

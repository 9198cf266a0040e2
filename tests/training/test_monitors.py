"""A metric that a callback monitors and nobody logs is named before the first step."""

from pathlib import Path

import pytest
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from torch import nn

from lit_finetune import FinetuneClassifier
from lit_finetune.datamodules import DigitsDataModule


def fit(folder: Path, *callbacks: Callback, **options: object) -> Trainer:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 8), nn.ReLU(), nn.Linear(8, 2))
    model = FinetuneClassifier(network, num_classes=2, lr=1e-3)
    data = DigitsDataModule(digits=[0, 1], batch_size=32, image_size=8, num_workers=0)
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=list(callbacks),
        **options,
    )
    trainer.fit(model, data)
    return trainer


@pytest.mark.parametrize("monitor", ["val/accuracy", "val_acc", "val/los"])
@pytest.mark.parametrize("kind", [EarlyStopping, ModelCheckpoint])
def test_a_mistyped_metric_is_refused_before_the_first_step(
    monitor: str, kind: type[Callback], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"{kind.__name__} monitors '{monitor}'.*Did you mean"):
        fit(tmp_path, kind(monitor=monitor))


@pytest.mark.parametrize("monitor", ["val/acc", "val/loss", "train/loss"])
def test_metrics_that_are_logged_are_taken(monitor: str, tmp_path: Path) -> None:
    assert fit(tmp_path, ModelCheckpoint(tmp_path, monitor=monitor)).global_step > 0


def test_without_a_validation_before_training_nothing_is_judged(tmp_path: Path) -> None:
    callback = ModelCheckpoint(tmp_path, monitor="val/acc")

    assert fit(tmp_path, callback, num_sanity_val_steps=0).global_step > 0


class LogsLater(Callback):
    """Logs a metric after training has begun, as many callbacks of users do."""

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            pl_module.log("val/auroc", 0.5)


def test_a_metric_that_a_users_callback_logs_later_is_not_refused(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="monitors 'val/auroc', which validation does not log"):
        trainer = fit(tmp_path, LogsLater(), ModelCheckpoint(tmp_path, monitor="val/auroc"))

    assert trainer.checkpoint_callback.best_model_score == 0.5


def test_a_run_without_validation_is_not_refused(tmp_path: Path) -> None:
    callback = EarlyStopping("val/acc", check_on_train_epoch_end=False)

    assert fit(tmp_path, callback, limit_val_batches=0).global_step > 0

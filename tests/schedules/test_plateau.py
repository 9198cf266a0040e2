"""ReduceLROnPlateau steps with each new value of validation, as a loop of one's own would."""

from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader, TensorDataset

from lit_finetune import FinetuneClassifier
from lit_finetune.callbacks import FreezeUnfreezeCallback


def model(**options: Any) -> FinetuneClassifier:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    net.data_config = {"image_size": [2, 2], "resize_size": 2}
    plateau = partial(ReduceLROnPlateau, patience=0, factor=0.5, threshold=0.05)
    return FinetuneClassifier(
        net, num_classes=3, lr=0.5, optimizer=SGD, **{"lr_scheduler": plateau, **options}
    )


def loader(seed: int) -> DataLoader[Any]:
    pictures = torch.randn(12, 3, 2, 2, generator=torch.Generator().manual_seed(seed))
    return DataLoader(TensorDataset(pictures, torch.arange(12) % 3), batch_size=4)


class Noted(Callback):
    """What each epoch's last validation gave, and the rate at the start of each epoch."""

    def __init__(self) -> None:
        self.losses: dict[int, float] = {}
        self.rates: list[float] = []
        self.steps = 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps += 1

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.losses[trainer.current_epoch] = float(trainer.callback_metrics["val/loss"])


def fit(module: FinetuneClassifier, *callbacks: Callback, **options: Any) -> Noted:
    noted = Noted()
    settings = {
        "max_epochs": 8,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(**{**settings, **options}, callbacks=[*callbacks, noted])
    try:
        trainer.fit(module, loader(1), loader(2))
    except ValueError:
        assert noted.steps == 0
        raise
    return noted


@pytest.mark.parametrize("schedule", [None, {0: "head", 2: "all"}])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"check_val_every_n_epoch": 2},
        {"check_val_every_n_epoch": 3, "num_sanity_val_steps": 0},
        {"check_val_every_n_epoch": 2, "val_check_interval": 0.5},
        {"check_val_every_n_epoch": None, "val_check_interval": 2},
    ],
)
def test_rates_are_those_of_a_loop_that_steps_after_each_validation(
    options: dict[str, Any], schedule: Any
) -> None:
    noted = fit(model(), *([FreezeUnfreezeCallback(schedule)] if schedule else []), **options)

    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    plateau = ReduceLROnPlateau(optimizer, patience=0, factor=0.5, threshold=0.05)
    rates = []
    for epoch in range(8):
        rates.append(optimizer.param_groups[0]["lr"])
        if epoch in noted.losses:
            plateau.step(noted.losses[epoch])
    assert noted.rates == rates
    assert len(noted.losses) == 8 // (options.get("check_val_every_n_epoch", 1) or 1)
    assert rates[-1] < rates[0]


def test_a_metric_that_nobody_logs_is_waited_for() -> None:
    def waits(optimizer: Any) -> ReduceLROnPlateau:
        plateau = ReduceLROnPlateau(optimizer, patience=0)
        plateau.monitor = "val/other"
        return plateau

    with pytest.warns(RuntimeWarning, match="val/other which is not available"):
        noted = fit(model(lr_scheduler=waits), max_epochs=2)
    assert noted.rates == [0.5, 0.5]


@pytest.mark.parametrize(
    ("options", "arguments", "words"),
    [
        ({"limit_val_batches": 0}, {}, "no validation: .*limit_val_batches"),
        ({}, {"lr_scheduler_interval": "step"}, "lr_scheduler_interval='step'.*Use 'epoch'"),
        (
            {"check_val_every_n_epoch": None, "val_check_interval": 5},
            {},
            "every 5 batches .*check_val_every_n_epoch",
        ),
    ],
)
def test_a_plateau_that_would_see_no_value_or_old_ones_is_refused_before_the_first_step(
    options: dict[str, Any], arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        fit(model(**arguments), **options)

"""What somebody who watches a run sees of its progress."""

import io
import sys
from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import RichProgressBar
from torch import nn

from lit_finetune import FinetuneClassifier
from lit_finetune.callbacks import SparingProgressBar
from lit_finetune.datamodules import DigitsDataModule


def watched(bar: type[RichProgressBar], **options: Any) -> tuple[str, int]:
    """What stands on the screen when a run of two epochs is over, and how often it was drawn."""

    class Counting(bar):  # type: ignore[misc, valid-type]
        draws = 0

        def _update(self, *arguments: Any, **keywords: Any) -> None:
            self.draws += 1
            super()._update(*arguments, **keywords)

    screen = io.StringIO()
    counting = Counting(
        leave=True, console_kwargs={"file": screen, "force_terminal": True, "width": 100}
    )
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2))
    Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[counting],
        **options,
    ).fit(
        FinetuneClassifier(network, num_classes=2),
        DigitsDataModule(digits=[0, 1], batch_size=4, image_size=8),
    )
    return screen.getvalue(), counting.draws


def test_the_bar_ends_full_though_it_is_seldom_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    usual, draws = watched(RichProgressBar, limit_val_batches=0)
    module = sys.modules[SparingProgressBar.__module__]
    monkeypatch.setattr(module, "REFRESH_INTERVAL_S", 1e9)  # seldom as can be, on any machine
    text, few = watched(SparingProgressBar, limit_val_batches=0)

    batches = draws // 2
    assert few == 2
    for shown in (usual, text):
        assert "Epoch 0/1" in shown
        assert "Epoch 1/1" in shown
        assert shown.count(f"{batches}/{batches}") >= 2
        assert "train/loss_step" in shown

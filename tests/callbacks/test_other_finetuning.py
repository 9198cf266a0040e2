"""Lightning's own finetuning callbacks are refused beside a schedule, before any step."""

from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import BackboneFinetuning, BaseFinetuning
from torch.utils.data import DataLoader

from lit_finetune import FinetuneClassifier
from lit_finetune.callbacks import FreezeUnfreezeCallback
from tests.training.test_nonfinite import network
from tests.training.test_reference_scores import pictures


class Own(BaseFinetuning):
    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.backbone[0])

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
        return


@pytest.mark.parametrize("other", [BackboneFinetuning(1), Own()], ids=lambda c: type(c).__name__)
@pytest.mark.parametrize("order", [1, -1])
def test_another_callback_that_freezes_is_refused_by_name(other: Any, order: int) -> None:
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[other, FreezeUnfreezeCallback("head_only")][::order],
    )
    with pytest.raises(ValueError, match=rf"{type(other).__name__} freezes.*leave one"):
        trainer.fit(FinetuneClassifier(network(), num_classes=3), DataLoader(pictures(8, 3), 4))
    assert trainer.global_step == 0

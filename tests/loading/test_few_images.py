"""Fewer pictures than processes in a loader of the user's own are told in a sentence."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import RunningStage
from torch.utils.data import DataLoader, TensorDataset

from lit_finetune import FinetuneClassifier
from lit_finetune.loading.few_images import refuse_few_images_in_loaders
from tests.distributed.ranks import ends_of_ranks
from tests.resuming.resumed_runs import Net


def run(fn: str) -> None:
    """What each of two processes does, with one picture."""
    model = FinetuneClassifier(Net(), num_classes=3, head=torch.nn.Linear(8, 3))
    trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, max_epochs=1)
    loader = DataLoader(TensorDataset(torch.randn(1, 3, 10, 10), torch.zeros(1, dtype=torch.long)))
    getattr(trainer, fn)(model, loader)


def two_processes() -> Trainer:
    """A Trainer that divides pictures among two; nothing is started."""
    trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False)
    refuse_few_images_in_loaders(trainer)
    refuse_few_images_in_loaders(trainer)
    return trainer


@pytest.mark.parametrize("stage", [RunningStage.TRAINING, RunningStage.PREDICTING])
def test_one_picture_is_refused_before_it_is_divided(stage: RunningStage) -> None:
    prepare = two_processes()._data_connector._prepare_dataloader

    with pytest.raises(ValueError, match=r"fewer .*pictures.* \(1\) than processes \(2\)"):
        prepare(DataLoader([0]), shuffle=False, mode=stage)
    assert len(prepare(DataLoader([0, 1]), shuffle=False, mode=stage)) == 1


def test_one_picture_is_enough_to_validate() -> None:
    prepare = two_processes()._data_connector._prepare_dataloader

    assert len(prepare(DataLoader([0]), shuffle=False, mode=RunningStage.VALIDATING)) == 1


@pytest.mark.long
@pytest.mark.parametrize("fn", ["fit", "predict"])
def test_a_run_ends_with_the_sentence(tmp_path: Path, fn: str) -> None:
    (code, told), _ = ends_of_ranks(run, fn, folder=tmp_path)

    assert code
    assert "(1) than processes (2)" in told

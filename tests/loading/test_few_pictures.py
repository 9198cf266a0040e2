"""Fewer pictures than processes in a loader of the user's own are told in a sentence."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import RunningStage
from torch.utils.data import DataLoader

from lit_finetune.loading.few_pictures import refuse_few_in_loaders

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, TensorDataset
from lit_finetune import FinetuneClassifier
from tests.resuming.resumed_runs import Net

model = FinetuneClassifier(Net(), num_classes=3, head=torch.nn.Linear(8, 3))
trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, max_epochs=1)
loader = DataLoader(TensorDataset(torch.randn(1, 3, 10, 10), torch.zeros(1, dtype=torch.long)))
getattr(trainer, sys.argv[1])(model, loader)
"""


def two_processes() -> Trainer:
    """A Trainer that divides pictures among two; nothing is started."""
    trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False)
    refuse_few_in_loaders(trainer)
    refuse_few_in_loaders(trainer)
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
    program = tmp_path / "run.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, str(program), fn],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert done.returncode != 0
    assert "(1) than processes (2)" in done.stderr

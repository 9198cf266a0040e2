"""A run that goes on amid an accumulated step makes that step of all its batches."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from lit_finetune.resuming.run_state import RUN
from tests.resuming.resumed_runs import Situation, compare, differences, run

STEPS = {"accumulate_grad_batches": 3}


class SaveAt(Callback):
    """A checkpoint in the place of the last one, after a batch of the whole run."""

    def __init__(self, folder: Path, batch: int) -> None:
        self.folder, self.batch = folder, batch

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx == self.batch:
            trainer.save_checkpoint(self.folder / "last.ckpt")


@pytest.mark.parametrize(
    ("saved", "stop"),
    [  # in the first epoch and the next, and at the last batch
        (1, 3),
        (6, 8),
        pytest.param(0, 2, marks=pytest.mark.long),
        pytest.param(9, 11, marks=pytest.mark.long),
    ],
)
def test_its_gradients_are_in_the_checkpoint(tmp_path: Path, saved: int, stop: int) -> None:
    broken = tmp_path / "broken"
    situation = Situation(trainer=STEPS, callbacks=lambda: [SaveAt(broken, saved)])

    assert compare(situation, tmp_path, stop) == []


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A checkpoint that was written amid a step."""
    folder = tmp_path_factory.mktemp("written")
    run(Situation(trainer=STEPS, callbacks=lambda: [SaveAt(folder, 6)]), folder, stop=8)
    return torch.load(folder / "last.ckpt", weights_only=True)


def test_a_checkpoint_without_them_is_told(tmp_path: Path, written: dict[str, Any]) -> None:
    foreign = {key: value for key, value in written.items() if key != RUN}  # as by Lightning alone
    torch.save(foreign, tmp_path / "last.ckpt")

    with pytest.warns(UserWarning, match="after 2 of its 3 batches, but the checkpoint does not"):
        run(Situation(trainer=STEPS), tmp_path, resume=True, stop=8)


@pytest.mark.parametrize(
    "gradients", [{"no": torch.zeros(1)}, [], {"backbone.fc.bias": torch.zeros(1)}]
)
def test_gradients_of_another_network_are_refused(
    tmp_path: Path, written: dict[str, Any], gradients: Any
) -> None:
    torch.save({**written, RUN: {**written[RUN], "gradients": gradients}}, tmp_path / "last.ckpt")

    with pytest.raises(ValueError, match="gradients in the checkpoint are not those"):
        run(Situation(trainer=STEPS), tmp_path, resume=True)


def test_without_the_gradients_the_run_is_another(tmp_path: Path, written: dict[str, Any]) -> None:
    torch.save(written, tmp_path / "last.ckpt")
    right, _ = run(Situation(trainer=STEPS), tmp_path, resume=True)
    torch.save({**written, RUN: {**written[RUN], "gradients": {}}}, tmp_path / "last.ckpt")
    wrong, _ = run(Situation(trainer=STEPS), tmp_path, resume=True)

    assert differences(right, wrong)

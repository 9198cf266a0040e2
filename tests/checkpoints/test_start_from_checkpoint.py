"""Go on from a checkpoint: its weights alone under a new schedule, or its run under the same."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lit_finetune import FinetuneClassifier
from lit_finetune.callbacks import FreezeUnfreezeCallback
from lit_finetune.cli.command_line import main
from lit_finetune.datamodules import DigitsDataModule

FIRST = {0: "head", 1: "layer2"}
OTHER = {0: "all"}
BACKBONE = "backbone."


class Net(nn.Module):
    """Two stages with statistics and a head."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(4, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer2(self.layer1(x)).mean((2, 3)))


class AtStart(Callback):
    """What a run starts with."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.weights = {name: value.clone() for name, value in pl_module.state_dict().items()}
        self.state = dict(trainer.optimizers[0].state)
        self.epoch, self.step = trainer.current_epoch, trainer.global_step
        self.trains = {n.split(".")[1] for n, p in pl_module.named_parameters() if p.requires_grad}


def fit(
    folder: Path,
    *callbacks: Callback,
    classes: int = 3,
    weights: Path | None = None,
    ckpt_path: Path | None = None,
) -> Path:
    """Train for two epochs, and return the path of the last checkpoint."""
    model = FinetuneClassifier(
        Net(), num_classes=classes, weights=None if weights is None else str(weights)
    )
    trainer = Trainer(
        max_epochs=3 if ckpt_path else 2,
        limit_train_batches=2,
        limit_val_batches=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )
    data = DigitsDataModule(digits=range(classes), batch_size=16, image_size=16, num_workers=0)
    trainer.fit(model, data, ckpt_path=ckpt_path, weights_only=True)
    trainer.save_checkpoint(folder / "last.ckpt")
    return folder / "last.ckpt"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Of a run in two phases, on three classes."""
    return fit(tmp_path, FreezeUnfreezeCallback(FIRST))


def saved(path: Path) -> dict[str, Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.mark.parametrize("classes", [3, 5])
def test_weights_alone_start_a_new_run_with_a_schedule_of_its_own(
    checkpoint: Path, tmp_path: Path, classes: int
) -> None:
    (tmp_path / "new").mkdir()
    start = AtStart()
    fit(tmp_path / "new", FreezeUnfreezeCallback(OTHER), start, classes=classes, weights=checkpoint)

    assert (start.epoch, start.step, start.state) == (0, 0, {})
    assert start.trains == {"layer1", "layer2", "fc"}
    same = {name for name, w in saved(checkpoint).items() if torch.equal(w, start.weights[name])}
    head = {"backbone.fc.weight", "backbone.fc.bias"}
    assert same == set(start.weights) - (head if classes != 3 else set())


def test_a_resumed_run_may_have_other_phases_ahead_of_it(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "resumed").mkdir()
    start = AtStart()
    schedule = {**FIRST, 2: "layer1"}
    fit(tmp_path / "resumed", FreezeUnfreezeCallback(schedule), start, ckpt_path=checkpoint)

    assert start.epoch == 2
    assert start.state, "the optimizer goes on with its moments"


REFUSED: dict[str, tuple[list[Any], str]] = {
    "another schedule": ([OTHER], "under another schedule: its phases so far began at epoch 0, "),
    "the same epochs, other blocks": ([{0: "head", 1: "layer1"}], "or with other parameters"),
    "no schedule": ([], "but this Trainer has no FreezeUnfreezeCallback"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_run_does_not_resume_under_another_schedule_and_is_told_what_to_do(
    checkpoint: Path, tmp_path: Path, name: str
) -> None:
    schedules, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as error:
        fit(tmp_path, *map(FreezeUnfreezeCallback, schedules), ckpt_path=checkpoint)

    assert "alone, passed as `weights`" in str(error.value)


def test_a_run_without_a_schedule_does_not_resume_under_one(tmp_path: Path) -> None:
    path = fit(tmp_path)
    with pytest.raises(ValueError, match="written without FreezeUnfreezeCallback"):
        fit(tmp_path, FreezeUnfreezeCallback(FIRST), ckpt_path=path)


def test_whoever_evaluates_a_checkpoint_needs_no_schedule(checkpoint: Path) -> None:
    model = FinetuneClassifier.load_from_checkpoint(checkpoint, backbone=Net())
    data = DigitsDataModule(digits=range(3), batch_size=16, image_size=16, num_workers=0)
    trainer = Trainer(accelerator="cpu", logger=False, limit_val_batches=1)

    assert trainer.validate(model, data, ckpt_path=checkpoint, verbose=False)


# The command line

WORDS = [
    *("--model.backbone", "examples.digits_net.DigitsNet"),
    *("--data", "DigitsDataModule", "--data.image_size", "8"),
    *("--trainer.max_epochs", "2", "--trainer.limit_train_batches", "3"),
    *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
    *("--trainer.enable_model_summary", "false"),
    *("--trainer.callbacks", "FreezeUnfreezeCallback", "--trainer.callbacks.schedule"),
]
RUN = Path("lightning_logs/version_0/checkpoints/last.ckpt")
NEXT = Path("lightning_logs/version_1/checkpoints/last.ckpt")


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: Any
) -> Callable[..., str]:
    """Run `train.py fit`, and return what it prints."""
    monkeypatch.setattr(sys, "argv", ["train.py"])
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):  # set by `seed_everything`
        monkeypatch.setenv(name, "0")

    def run(*words: str, code: int = 0) -> str:
        caplog.clear()
        with caplog.at_level(logging.INFO):
            if code:
                with pytest.raises(SystemExit) as end:
                    main(args=["fit", *WORDS, *words])
                assert end.value.code == code
            else:
                main(args=["fit", *WORDS, *words])
        return caplog.text + "".join(capsys.readouterr())

    return run


@pytest.mark.slow
def test_the_command_line_starts_from_a_checkpoints_weights_for_other_classes(
    command: Callable[..., str],
) -> None:
    command("{0: head, 1: layer3}", "--data.digits", "[0, 1, 2]")
    text = command("full", "--data.digits", "[3, 4, 5, 6]", "--model.weights", str(RUN))

    assert "100.0% of the backbone's parameters loaded" in text
    assert "a new head, `head`, for 4 classes" in text
    content = torch.load(NEXT, weights_only=True)
    assert content["callbacks"]["FreezeUnfreezeCallback"]["phase"] == 0
    assert content["global_step"] == 6


@pytest.mark.slow
def test_the_command_line_refuses_to_resume_under_another_schedule(
    command: Callable[..., str],
) -> None:
    command("{0: head, 1: layer3}", "--data.digits", "[0, 1, 2]")
    text = command("full", "--data.digits", "[0, 1, 2]", "--ckpt_path", str(RUN), code=2)

    assert "error: The checkpoint was written under another schedule" in text.replace("\n", " ")
    assert "Traceback" not in text

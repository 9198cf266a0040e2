"""A mistake on the command line ends in a few lines that say what to do, and in no traceback."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from safetensors.torch import save_file

from lit_finetune import FinetuneClassifier
from lit_finetune.cli.command_line import main

QUICK = [
    *("--model.backbone", "examples.digits_net.DigitsNet"),
    *("--data", "DigitsDataModule", "--data.digits", "[0, 1]", "--data.image_size", "8"),
    *("--data.num_workers", "0", "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1"),
    *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
    *("--trainer.enable_model_summary", "false", "--trainer.logger", "false"),
]
FOLDER = ["--data", "ImageFolderDataModule", "--data.data_dir"]

Say = Callable[..., str]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Say:
    """What a mistake ends with: the lines from the first that tells of it."""
    monkeypatch.setattr(sys, "argv", ["train.py"])
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")
    (Path("photos") / "ants").mkdir(parents=True)
    Path("plain.txt").write_text("no folder, and no checkpoint")
    Path("broken.yaml").write_text("model: {lr: 1\ntrainer: [\n")
    Path("twice.yaml").write_text("model:\n  lr: 0.1\n  lr: 0.2\n")
    Path("class.yaml").write_text("data: {class_path: lit_finetune.datamodules.DigitDataModule}\n")
    save_file({"w": torch.zeros(3)}, "weights.safetensors")

    def said(*words: str, command: str = "fit") -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main(args=[command, *words] if command else list(words))
        assert end.value.code == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
        starts = [i for i, line in enumerate(lines) if line.startswith(("usage:", "error:"))]
        assert not [line for line in lines if "Traceback" in line]
        assert len(lines[starts[0] :]) <= 6
        return "\n".join(lines[starts[0] :])

    return said


MISTAKES = {
    "no class of data": (["--data.data_dir", "photos"], "Give one before.*ImageFolderDataModule"),
    "class of data": (["--data", "DigitDataModule"], "Did you mean 'DigitsDataModule'"),
    "class in a file": (["--config", "class.yaml"], "Did you mean 'DigitsDataModule'"),
    "callback": (["--trainer.callbacks", "LinearProb"], "Did you mean 'LinearProbe'"),
    "optimizer": (["--model.optimizer", "AdmW"], "Did you mean 'AdamW'"),
    "scheduler": (["--model.lr_scheduler", "constnt"], "Did you mean 'constant'"),
    "two of a name": (
        ["--model.lr_scheduler", "ReduceLROnPlateau"],
        "full class path.*torch.optim",
    ),
    "option": (["--model.weigths", "x"], "Did you mean '--model.weights'"),
    "argument of data": (["--data.bach_size", "3"], "Did you mean 'batch_size'"),
    "argument of an optimizer": (
        ["--model.optimizer", "SGD", "--model.optimizer.momentm", "0.9"],
        "Did you mean 'momentum'",
    ),
    "argument that is missing": (
        ["--trainer.callbacks", "FreezeUnfreezeCallback"],
        r"--trainer\.callbacks\.schedule",
    ),
    "number": (["--trainer.max_epochs", "many"], "'many' is not what it takes: int, null"),
    "number of data": (["--data.batch_size", "big"], r"data\.batch_size.*'big'.*takes: int"),
    "choice": (["--trainer.precision", "17"], "16-mixed"),
    "negative epochs": (["--trainer.max_epochs", "-3"], "-3"),
    "negative workers": ([*FOLDER, "photos", "--data.num_workers", "-1"], "num_workers|photos"),
    "batch of none": (["--data.batch_size", "0"], "`batch_size` must be at least 1"),
    "folder": ([*FOLDER, "photo"], "Did you mean 'photos'"),
    "folder without pictures": ([*FOLDER, "photos"], "photos"),
    "broken YAML": (["--config", "broken.yaml"], "broken.yaml, line 2"),
    "key given twice": (["--config", "twice.yaml"], "twice.yaml, line 3.*'lr' is given twice"),
    "no configuration": (["--config", "twise.yaml"], "Did you mean 'twice.yaml'"),
    "no checkpoint": (["--ckpt_path", "plain.tx"], "no checkpoint plain.tx.*'plain.txt'"),
    "text as checkpoint": (["--ckpt_path", "plain.txt"], "plain.txt is no checkpoint"),
    "weights as checkpoint": (["--ckpt_path", "weights.safetensors"], r"--model\.weights"),
    "logs below a file": (
        ["--trainer.default_root_dir", "plain.txt"],
        r"plain.txt.*--trainer\.default_root_dir",
    ),
    "checkpoints below a file": (
        ["--checkpoint.dirpath", "plain.txt/a"],
        r"plain.txt.*--checkpoint\.dirpath",
    ),
    "metric of EarlyStopping": (
        ["--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor", "val_acc"],
        "val/acc",
    ),
}


@pytest.mark.parametrize(("words", "remedy"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_with_its_remedy(say: Say, words: list[str], remedy: str) -> None:
    given = QUICK[2 * ("--model.backbone" in words) :]
    if words[0] in ("--data.data_dir",) or "class.yaml" in words:
        given = [*QUICK[:2], *QUICK[10:]]

    text = say(*given, *words)

    assert re.search(remedy, text, re.DOTALL), text


@pytest.mark.parametrize("command", ["fti", ""])
def test_a_wrong_or_missing_command_is_told_with_those_that_there_are(
    say: Say, command: str
) -> None:
    assert "validate" in say(command=command)


@pytest.mark.filterwarnings("ignore:The data says")
def test_the_checkpoint_of_another_network_is_told_with_what_to_do(say: Say) -> None:
    model = FinetuneClassifier("timm/test_resnet", num_classes=2)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint("other.ckpt")

    text = say(*QUICK, "--ckpt_path", "other.ckpt", command="validate")

    assert "'other.ckpt' is of another network" in text
    assert "--model.weights=other.ckpt" in text


def test_a_size_that_the_network_does_not_take_is_told_with_the_one_that_it_needs(say: Say) -> None:
    words = [*QUICK[2:], "--model.backbone", "squeezenet1_1", "--data.image_size", "8"]

    assert "--model.image_size=8" in say(*words)


def test_names_in_messages_do_not_reach_the_terminal_raw(say: Say) -> None:
    assert "\\x1b[2J" in say(*QUICK, "--ckpt_path", "a\x1b[2J.ckpt")

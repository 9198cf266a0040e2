"""The quickstart, as a user runs it: one command, without a network."""

import csv
import io
import logging
import re
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from sklearn.datasets import load_digits

from examples.digits_net import DigitsNet
from examples.pretrain_digits import WEIGHTS, pretrain
from lit_finetune import FinetuneClassifier, load_weights
from lit_finetune.cli.command_line import main

ROOT = Path(__file__).parents[2]
COMMAND = ("train.py", "fit", "--config", "configs/quickstart.yaml")


@pytest.fixture(scope="module")
def printed(tmp_path_factory) -> str:
    """What a run of the quickstart prints."""
    folder = tmp_path_factory.mktemp("quickstart")
    output = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(output),
        redirect_stderr(output),
    ):
        patch.chdir(ROOT)
        patch.setattr(sys, "argv", [COMMAND[0]])
        # Lightning makes itself such a handler where none is there before it, as here pytest's.
        patch.setattr(logging.getLogger("lightning.pytorch"), "handlers", [logging.StreamHandler()])
        main(args=[*COMMAND[1:], f"--trainer.default_root_dir={folder}"])
    return output.getvalue()


def told(name: str, printed: str) -> str:
    """What a line of the report says first; for most of them, a path."""
    return re.findall(rf"(?m)^{name} +(\S+)", printed)[0]


@pytest.mark.slow
def test_it_reaches_its_accuracy(printed):
    (accuracy,) = re.findall(r"(?m)^best .*\(val/acc (\S+)\)", printed)

    assert float(accuracy) >= 0.97


@pytest.mark.slow
def test_it_unfreezes_the_network_from_the_head_down(printed):
    phases = re.findall(r"Epoch (\d+): training ([\w, ]+) \(", printed)

    assert phases == [("0", "head"), ("2", "layer3"), ("4", "layer2, layer1")]


@pytest.mark.slow
def test_it_ends_with_what_was_trained_and_where_everything_is(printed):
    best, last, logs = (told(name, printed) for name in ("best", "last", "logs"))

    assert "24,021  100.0%" in printed
    assert Path(best).is_file()
    assert Path(last).is_file()
    assert list(Path(logs).rglob("events.*"))
    assert list(Path(logs).rglob("metrics.csv"))


@pytest.mark.slow
def test_its_predictions_are_where_it_says_and_right(printed):
    (path,) = re.findall(r"Predictions for 179 pictures are in (\S+)", printed)
    with Path(path).open() as file:
        rows = list(csv.DictReader(file))
    truth = load_digits().target

    right = [row["predicted"] == str(truth[int(row["file"].split("_")[1])]) for row in rows]

    assert list(rows[0]) == ["file", "predicted", "5", "6", "7", "8", "9"]
    assert len(rows) == 179
    assert sum(right) / len(right) >= 0.97


@pytest.mark.slow
def test_its_best_checkpoint_needs_nothing_but_the_word_that_its_network_is_trusted(printed):
    model = FinetuneClassifier.load_from_checkpoint(told("best", printed), backbone=DigitsNet)

    assert model.classes == ["5", "6", "7", "8", "9"]


def test_its_weights_file_fits_the_network_and_is_small():
    report = load_weights(DigitsNet(num_classes=5), WEIGHTS)

    assert report.share == 1.0
    assert report.missing == ("head.weight", "head.bias")
    assert not report.unexpected
    assert WEIGHTS.stat().st_size < 300_000


@pytest.mark.slow
def test_its_weights_file_can_be_made_again(tmp_path):
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"

    assert pretrain(first, epochs=2) == pretrain(second, epochs=2) > 0.9
    assert first.read_bytes() == second.read_bytes()

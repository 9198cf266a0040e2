"""The command line, as its user sees it: words in, files and messages out."""

import csv
import inspect
import io
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from lit_finetune import FinetuneClassifier
from lit_finetune.callbacks import FreezeUnfreezeCallback
from lit_finetune.cli.command_line import main
from lit_finetune.datamodules import ImageFolderDataModule

ROOT = Path(__file__).parents[2]
NETWORK = ["--model.backbone", "examples.digits_net.DigitsNet"]
QUICK = [
    *NETWORK,
    *("--data", "DigitsDataModule", "--data.digits", "[0, 1, 2]", "--data.image_size", "8"),
    *("--trainer.max_epochs", "2", "--trainer.limit_train_batches", "3"),
    *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
    *("--trainer.enable_model_summary", "false"),
]
FREEZE = ["--trainer.callbacks", "FreezeUnfreezeCallback", "--trainer.callbacks.schedule"]
VERSION = Path("lightning_logs/version_0")

Command = Callable[..., str]


@pytest.fixture(autouse=True)
def _as_from_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):  # set by `seed_everything`
        monkeypatch.setenv(name, "0")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Command:
    """Run a command, and return what it prints."""

    def run(*words: str, code: int | None = None) -> str:
        capsys.readouterr()
        caplog.clear()
        if code is None:
            main(args=list(words))
        else:
            with pytest.raises(SystemExit) as end:
                main(args=list(words))
            assert end.value.code == code
        return "".join([caplog.text, *capsys.readouterr()])

    return run


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two classes for training, of which validation has one and another besides."""
    for shade, folder in enumerate(("train/cat", "train/dog", "val/cat", "val/dgo")):
        (tmp_path / "pictures" / folder).mkdir(parents=True)
        picture = Image.new("RGB", (8, 8), (shade, 0, 0))
        picture.save(tmp_path / "pictures" / folder / "one.png")
    return tmp_path / "pictures"


def last(version: Path = VERSION) -> dict[str, Any]:
    return torch.load(version / "checkpoints/last.ckpt", weights_only=True)


def best(version: Path = VERSION) -> Path:
    return next((version / "checkpoints").glob("epoch=*.ckpt"))


# Help and configuration


def explained(text: str, prefix: str) -> set[str]:
    """The options under a prefix for which a help text has more than a type to say."""
    return set(re.findall(rf"--{re.escape(prefix)}\.(\w+)\+? \S+\s+[^(\s-]", text))


@pytest.mark.parametrize("subcommand", ["fit", "validate", "test", "predict"])
def test_help_explains_every_argument_of_the_model(run: Command, subcommand: str) -> None:
    text = run(subcommand, "--help", code=0)

    arguments = inspect.signature(FinetuneClassifier).parameters.keys() - {"num_classes"}
    assert arguments <= explained(text, "model")
    assert {"monitor", "dirpath"} <= explained(text, "checkpoint")
    assert explained(text, "last_checkpoint") == {"every_n_train_steps", "train_time_interval"}
    assert explained(text, "predictions") == {"path"}


def test_help_for_a_class_explains_every_argument_of_it(run: Command) -> None:
    text = run("fit", "--data.help", "ImageFolderDataModule", code=0)
    assert inspect.signature(ImageFolderDataModule).parameters.keys() - {"kwargs"} <= explained(
        text, "data"
    )

    text = run("fit", "--trainer.callbacks.help=FreezeUnfreezeCallback", code=0)
    assert inspect.signature(FreezeUnfreezeCallback).parameters.keys() <= explained(
        text, "trainer.callbacks"
    )


def test_help_lists_our_classes_and_not_the_thousand_of_torch(run: Command) -> None:
    text = run("fit", "--help", code=0)

    assert "torch.nn.Dropout" not in text
    for name in ("ImageFolderDataModule", "FreezeUnfreezeCallback", "torch.optim.SGD"):
        assert name in text


@pytest.mark.parametrize(
    "words",
    [
        ["--model.lr_scheduler", "constant", "--model.head", "mlp"],
        ["--model.optimizer", "SGD", "--model.optimizer.momentum", "0.9"],
        ["--model.lr_scheduler", "StepLR", "--model.lr_scheduler.step_size", "1"],
        [*FREEZE, "{0: head, 1: [layer3, {modules: layer2, lr_scale: 0.1}]}"],
        [*FREEZE, "{gradual: {every: 1}}"],
        ["--data.train_augmentation", "trivial", "--model.class_weights", "balanced"],
    ],
)
def test_a_printed_configuration_gives_the_same_run_again(run: Command, words: list[str]) -> None:
    printed = run("fit", *QUICK, *words, "--print_config", code=0)
    Path("run.yaml").write_text(printed, encoding="utf-8")

    assert run("fit", "--config", "run.yaml", "--print_config", code=0) == printed


def test_a_run_can_be_repeated_from_the_configuration_it_leaves(run: Command) -> None:
    run("fit", *QUICK, *FREEZE, "{0: head, 1: layer3}")
    run("fit", "--config", str(VERSION / "config.yaml"))

    weights, again = (last(VERSION.with_name(f"version_{n}"))["state_dict"] for n in (0, 1))
    assert all(torch.equal(value, again[name]) for name, value in weights.items())


# What the words mean


@pytest.mark.parametrize("name", ["SGD", "torch.optim.SGD"])
def test_an_optimizer_is_named_in_short_or_in_full(run: Command, name: str) -> None:
    run("fit", *QUICK, "--model.optimizer", name, "--model.optimizer.momentum=0.8", "--model.lr=.1")

    groups = last()["optimizer_states"][0]["param_groups"]
    assert {group["momentum"] for group in groups} == {0.8}
    assert groups[0]["name"] == "head/decay"
    assert groups[0]["initial_lr"] == 0.1


def test_a_scheduler_is_a_class_or_constant(run: Command) -> None:
    run("fit", *QUICK, "--model.lr_scheduler", "StepLR", "--model.lr_scheduler.step_size", "1")
    assert last()["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(1e-5)

    run("fit", *QUICK, "--model.lr_scheduler", "constant")
    after = last(VERSION.with_name("version_1"))
    assert after["lr_schedulers"] == []
    assert after["optimizer_states"][0]["param_groups"][0]["lr"] == 1e-3


def test_the_head_may_be_an_mlp(run: Command) -> None:
    run("fit", *QUICK, "--model.head", "mlp")

    heads = [value for key, value in last()["state_dict"].items() if "backbone.head" in key]
    assert sorted(value.dim() for value in heads)[-2:] == [2, 2]  # two matrices


@pytest.mark.parametrize("where", ["file", "words"])
def test_a_schedule_comes_from_a_file_or_from_the_command_line(run: Command, where: str) -> None:
    schedule = {0: "head", 1: "layer3"}
    words = [*FREEZE, "{0: head, 1: layer3}"]
    if where == "file":
        name = "lit_finetune.callbacks.FreezeUnfreezeCallback"
        callback = {"class_path": name, "init_args": {"schedule": schedule}}
        Path("run.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [callback]}}))
        words = ["--config", "run.yaml"]

    text = run("fit", *QUICK, *words)

    assert [
        phase["epoch"] for phase in last()["callbacks"]["FreezeUnfreezeCallback"]["phases"]
    ] == [
        0,
        1,
    ]
    assert "Epoch 1: training layer3" in text


def test_the_same_seed_gives_the_same_run_unless_another_is_asked_for(run: Command) -> None:
    for words in ([], [], ["--seed_everything", "7"]):
        run("fit", *QUICK, *words)

    one, same, other = (
        last(VERSION.with_name(f"version_{n}"))["state_dict"]["backbone.head.weight"]
        for n in range(3)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


class HalfLoss(FinetuneClassifier):
    """A user's own."""

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        return super().loss(logits, target) * 0 + 0.5


def test_a_subclass_of_the_classifier_has_the_same_command_line(run: Command) -> None:
    returned = main(HalfLoss, ["fit", *QUICK])

    assert returned is None  # a console script ends with what its function returns
    rows = csv.DictReader((VERSION / "metrics.csv").open())
    assert {float(row["val/loss"]) for row in rows if row["val/loss"]} == {0.5}


# What a run leaves


def test_a_run_leaves_everything_in_one_folder(run: Command) -> None:
    text = run("fit", *QUICK)

    assert {path.name for path in Path().iterdir()} == {"lightning_logs"}
    names = {path.name.split(".")[0] for path in VERSION.iterdir()}
    assert names == {"checkpoints", "config", "events", "hparams", "metrics", "predictions"}
    assert {path.name for path in (VERSION / "checkpoints").iterdir()} == {
        "last.ckpt",
        best().name,
    }
    for path in (VERSION, VERSION / "checkpoints/last.ckpt", VERSION / "predictions.csv", best()):
        assert str(path.resolve()) in text
    header = (VERSION / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"lr-AdamW/head/decay", "lr-AdamW/layer1/no_decay", "val/acc", "train/loss"} <= {*header}


def test_the_best_checkpoint_is_that_of_the_highest_accuracy(run: Command) -> None:
    run("fit", *QUICK, "--trainer.max_epochs", "4")

    rows = csv.DictReader((VERSION / "metrics.csv").open())
    accuracy = [float(row["val/acc"]) for row in rows if row["val/acc"]]
    assert best().name == f"epoch={accuracy.index(max(accuracy))}-acc={max(accuracy):.4f}.ckpt"


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (["--trainer.logger", "false"], {"checkpoints"}),
        (["--trainer.fast_dev_run", "true"], set()),
        (["--trainer.fast_dev_run", "true", *FREEZE, "gradual"], set()),
        (["--trainer.enable_checkpointing", "false"], {"lightning_logs"}),
        (["--trainer.logger=false", "--trainer.enable_checkpointing=false"], set()),
        (["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "mine"], {"mine"}),
        (["--trainer.callbacks", "ModelCheckpoint"], {"lightning_logs"}),
        (["--trainer.callbacks", "LearningRateMonitor"], {"lightning_logs"}),
        (
            ["--trainer.enable_progress_bar=true", "--trainer.callbacks", "TQDMProgressBar"],
            {"lightning_logs"},
        ),
        (["--trainer.enable_progress_bar", "true"], {"lightning_logs"}),
        (["--checkpoint.save_top_k", "0"], {"lightning_logs"}),
        (["--trainer.max_epochs", "0"], {"lightning_logs"}),
    ],
)
def test_defaults_give_way_to_what_the_user_says(
    run: Command, words: list[str], left: set[str]
) -> None:
    run("fit", *QUICK, *words)

    assert {path.name for path in Path().iterdir()} == left


def test_both_checkpoints_go_to_the_folder_that_is_asked_for(run: Command) -> None:
    run("fit", *QUICK, "--checkpoint.dirpath", "kept")

    assert sorted(path.name.split("=")[0] for path in Path("kept").iterdir()) == [
        "epoch",
        "last.ckpt",
    ]


def test_the_users_own_checkpoint_callback_takes_the_place_of_ours(run: Command) -> None:
    run("fit", *QUICK, "--trainer.callbacks", "ModelCheckpoint", "--trainer.callbacks.filename=my")

    assert [path.name for path in (VERSION / "checkpoints").iterdir()] == ["my.ckpt"]


@pytest.mark.parametrize("words", [["--trainer.limit_val_batches=0"], ["--data.val_split=0"]])
def test_a_run_without_validation_keeps_its_last_checkpoint(run: Command, words: list[str]) -> None:
    text = run("fit", *QUICK, *words)

    assert [path.name for path in (VERSION / "checkpoints").iterdir()] == ["last.ckpt"]
    assert (VERSION / "predictions.csv").exists() == ("--data.val_split=0" not in words)
    assert "Prediction failed" in text or "--data.val_split=0" not in words


def test_pictures_that_cannot_be_predicted_leave_the_training_as_it_is(
    run: Command, pictures: Path
) -> None:
    words = ["--data", "ImageFolderDataModule", "--data.data_dir", str(pictures / "train")]
    words += ["--data.val_split", "0", "--data.predict_dir", "nowhere", "--data.num_workers", "0"]

    text = run("fit", *QUICK, *words)

    assert "Prediction failed: There is no folder" in text
    assert last()["epoch"] == 1


def test_a_resumed_run_remembers_the_best_of_before(run: Command) -> None:
    # The first epoch is the best.
    worst = ["--checkpoint.mode", "min", "--model.lr", "0.01"]
    run("fit", *QUICK, *worst)
    before = best().resolve()
    assert before.name.startswith("epoch=0")
    assert last()["epoch"] == 1

    checkpoint = str(VERSION / "checkpoints/last.ckpt")
    text = run("fit", *QUICK, *worst, "--trainer.max_epochs=4", "--ckpt_path", checkpoint)

    assert str(before) in text
    assert before.exists()
    resumed = VERSION.with_name("version_1")
    assert [path.name for path in (resumed / "checkpoints").iterdir()] == ["last.ckpt"]


def test_evaluation_and_prediction_use_the_checkpoint(run: Command) -> None:
    run("fit", *QUICK, "--trainer.max_epochs", "4")
    trained = ["--config", str(VERSION / "config.yaml"), "--ckpt_path", str(best())]

    text = run("validate", *trained)
    run("predict", *trained, "--predictions.path", "again.csv")

    accuracy = re.search(r"acc=(.*)\.ckpt", best().name)
    assert accuracy
    assert accuracy[1] in text
    assert Path("again.csv").read_text() == (VERSION / "predictions.csv").read_text()


def test_without_a_checkpoint_evaluation_says_so(run: Command) -> None:
    assert "No `ckpt_path` is given" in run("validate", *QUICK)


def test_messages_pass_through_whatever_has_taken_over_the_screen(
    run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen, bar = io.StringIO(), io.StringIO()
    logger = logging.getLogger("lightning.pytorch")
    monkeypatch.setattr(logger, "handlers", [logging.StreamHandler(screen)])
    monkeypatch.setattr(sys, "stderr", bar)

    run("fit", *QUICK, *FREEZE, "{0: head, 1: layer3}")

    assert "Epoch 1: training layer3" in bar.getvalue()
    assert not screen.getvalue()


# What is refused


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--model.backbone", "resnet19"], "no classifier 'resnet19'. Did you mean 'resnet18'"),
        (["--model.backbone", "examples.digits_net.DigitsNt"], "Did you mean 'DigitsNet'?"),
        (["--model.backbone", "nowhere.Net"], "nowhere"),
        (["--model.backbone", "timm/test_resnat"], "test_resnet"),
        (["--model.weights", "none.pth"], "No weights file 'none.pth'"),
        (["--model.weights", "other.pth"], "less than min_match=0.9"),
        (["--model.lr", "-1"], "`lr` must be positive and finite, but got -1"),
        (["--model.lr", "fast"], 'key "model.lr"'),
        (["--model.lr_scheduler", "constnt"], "Expected a dot import path string: constnt"),
        (["--model.head", "mpl"], "mpl"),
        (["--model.num_classes", "3"], "it follows from the data"),
        (["--config", "num_classes.yaml"], "it follows from the data"),
        (["--config", "none.yaml"], "File does not exist"),
        (["--modl.lr", "1"], "unrecognized arguments: --modl.lr"),
        (["--data", "ImageFolderDataModule", "--data.data_dir", "pictres"], "There is no folder"),
        (["--data", "ImageFolderDataModule", "--data.data_dir", "pictures"], "dgo"),
        (["--data.val_split", "3"], "`val_split` 3.0"),
        ([*FREEZE, "gradul"], "Did you mean 'gradual'?"),
        ([*FREEZE, "{0: head, 1: layr3}"], "'layr3' matches nothing. Did you mean 'layer3'"),
        ([*FREEZE, "{0: head, 1: head}"], "overlaps"),
        ([*FREEZE, "{0: head, 2: layer3}"], "never reached"),
        ([*FREEZE, "{1: head}"], "nothing would train before epoch 1"),
        (["--ckpt_path", "none.ckpt"], "none.ckpt"),
        (["--trainer.accelerator", "gpu"], "No supported gpu backend found"),
        (["--trainer.val_check_interval", "100"], "`val_check_interval`"),
    ],
)
def test_a_bad_argument_ends_in_a_short_message(
    run: Command, pictures: Path, words: list[str], says: str
) -> None:
    Path("num_classes.yaml").write_text("model: {num_classes: 3}")
    torch.save({"conv.weight": torch.zeros(3)}, "other.pth")
    if "gpu" in words and torch.cuda.is_available():
        pytest.skip("here this is no mistake")

    text = run("fit", *QUICK, *words, code=2)

    _, found, message = text.rpartition("error: ")
    assert found
    assert says in message
    assert "Traceback" not in text
    assert message.count("\n") < 12


def test_a_missing_argument_is_named(run: Command) -> None:
    assert "fit.model.backbone, fit.data" in run("fit", code=2)


def test_the_error_itself_can_be_had(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEBUG", "true")

    with pytest.raises(ValueError, match="resnet19"):
        run("fit", *QUICK, "--model.backbone", "resnet19")


def test_an_error_in_the_users_own_code_keeps_its_traceback(
    run: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = "from torch import nn\nclass Net(nn.Module):\n    def __init__(self): int('mine')\n"
    (tmp_path / "users_net.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(ValueError, match="mine"):
        run("fit", *QUICK, "--model.backbone", "users_net.Net")


# Checkpoints


class Trap:
    """Does something when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("trapped").absolute(),)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address under which `tmp_path` is served."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("subcommand", ["fit", "validate", "predict"])
@pytest.mark.parametrize("remote", [False, True])
def test_no_checkpoint_runs_code(
    run: Command, server: str, monkeypatch: pytest.MonkeyPatch, subcommand: str, remote: bool
) -> None:
    monkeypatch.setenv("TORCH_HOME", "cache")
    torch.save({"state_dict": {}, "trap": Trap()}, "trap.ckpt")
    path = f"{server}/trap.ckpt" if remote else "trap.ckpt"

    text = run(subcommand, *QUICK, "--ckpt_path", path, code=2)

    assert "trap.ckpt holds more than plain data" in text
    assert "weights_only" not in text
    assert not Path("trapped").exists()


def test_a_checkpoint_is_replaced_as_a_whole(
    run: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system for temporary files")
    monkeypatch.setattr("tempfile.tempdir", str(memory))
    path = Path("kept/last.ckpt")
    run("fit", *QUICK, "--checkpoint.dirpath", "kept")
    old = path.read_bytes()

    with path.open("rb") as before:  # it would see a file that is written in its place
        resume = ["--trainer.max_epochs", "3", "--ckpt_path", str(path)]
        run("fit", *QUICK, "--checkpoint.dirpath", "kept", *resume)
        assert before.read() == old

    assert torch.load(path, weights_only=True)["epoch"] == 2
    assert not list(Path("kept").glob("*.part"))


# Two processes


@pytest.mark.slow
def test_two_processes_train_one_network_and_predict_each_picture_once(
    run: Command, tmp_path: Path
) -> None:
    words = [
        *QUICK,
        *("--trainer.max_epochs", "3", "--trainer.callbacks", "FreezeUnfreezeCallback"),
        "--trainer.callbacks.schedule={0: head, 1: layer3, 2: all}",
        *("--trainer.callbacks+", "two_processes.WriteDown", "--trainer.callbacks.folder", "."),
        *("--trainer.strategy", "ddp", "--trainer.devices", "2"),
    ]
    places = (ROOT, ROOT / "tests/distributed")
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "fit", *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places))},
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert done.returncode == 0, done.stderr[-3000:]
    for epoch, trainable in enumerate([2, 5, 11]):
        one, other = (
            torch.load(tmp_path / f"rank{rank}-epoch{epoch}.pt", weights_only=True)
            for rank in range(2)
        )
        assert len(one["trainable"]) == trainable
        for name, value in one["weights"].items():
            is_statistic = "running" in name  # each process has seen its own pictures
            assert is_statistic or torch.equal(value, other["weights"][name]), name
    assert done.stdout.count("What was trained") == 1
    assert done.stderr.count("Predictions for 107 pictures are in") == 1
    assert [path.name for path in VERSION.parent.iterdir()] == ["version_0"]

    run("predict", *QUICK, "--ckpt_path", str(best()), "--predictions.path", "alone.csv")
    together, alone = (
        list(csv.reader(path.open())) for path in (VERSION / "predictions.csv", Path("alone.csv"))
    )
    assert len(together) == 108
    assert [row[0] for row in together] == [row[0] for row in alone]
    for row, same in zip(together[1:], alone[1:], strict=True):
        assert [float(p) for p in row[2:]] == pytest.approx([float(p) for p in same[2:]], abs=1e-4)


@pytest.mark.slow
def test_a_linear_probe_comes_before_a_schedule_or_alone(run: Command) -> None:
    after = ["--trainer.callbacks+", "FreezeUnfreezeCallback", "--trainer.callbacks.schedule"]

    both = run("fit", *QUICK, "--trainer.callbacks", "LinearProbe", *after, "lp_ft")
    alone = run("fit", *QUICK, "--trainer.callbacks", "LinearProbe", "--trainer.max_epochs", "0")

    assert re.search(r"probe +accuracy [01]\.\d{4}, loss .* on the validation pictures", both)
    assert re.search(r"0 +all", both)
    assert Path("lightning_logs/version_1/checkpoints/last.ckpt").is_file()
    assert re.search(r"probe +accuracy", alone)
    assert "Predictions for" in alone

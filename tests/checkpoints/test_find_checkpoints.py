"""`--ckpt_path last` and `best` of a new process are those of the newest run, or are refused."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lit_finetune import FinetuneClassifier
from lit_finetune.callbacks import BestCheckpoint, LastCheckpoint
from lit_finetune.checkpoints.find_checkpoints import (
    best_checkpoint,
    checkpoint_dirpaths,
    last_checkpoint,
)
from lit_finetune.cli.command_line import main
from lit_finetune.datamodules import DigitsDataModule
from tests.resuming.resumed_runs import Net

WORDS = [
    "--model.backbone=tests.resuming.resumed_runs.Net",
    "--data=DigitsDataModule",
    "--data.digits=[0,1,2]",
    "--data.image_size=10",
    "--data.num_workers=0",
    "--trainer.accelerator=cpu",
    "--trainer.limit_train_batches=3",
    "--trainer.limit_val_batches=2",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]


@pytest.fixture(autouse=True)
def _as_from_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["train.py"])


def kept(folder: Path, version: int) -> dict[str, Path]:
    """The checkpoints of a run."""
    files = (folder / f"lightning_logs/version_{version}/checkpoints").glob("*.ckpt")
    return {"last" if path.stem == "last" else "best": path for path in files}


@pytest.mark.slow
def test_the_command_line_goes_on_with_the_newest_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for epochs in (1, 2):
        main(args=["fit", *WORDS, f"--trainer.max_epochs={epochs}"])
    main(args=["fit", *WORDS, "--trainer.max_epochs=3", "--ckpt_path=last"])

    assert str(kept(tmp_path, 1)["last"]) in caplog.text
    assert torch.load(kept(tmp_path, 2)["last"], weights_only=True)["global_step"] == 9

    main(args=["validate", *WORDS, "--ckpt_path=best"])
    best = {**kept(tmp_path, 1), **kept(tmp_path, 2)}["best"]  # of before, if it was not beaten
    assert str(best) in caplog.text


@pytest.mark.parametrize("which", ["last", "best"])
def test_the_command_line_refuses_where_there_was_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], which: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(args=["fit", *WORDS, f"--ckpt_path={which}"])

    assert f"`ckpt_path` is '{which}', but no earlier run" in capsys.readouterr().err


def fit(folder: Path, epochs: int, ckpt_path: str | None = None) -> Trainer:
    trainer = Trainer(
        max_epochs=epochs,
        limit_train_batches=3,
        limit_val_batches=0,
        accelerator="cpu",
        logger=CSVLogger(folder),
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[BestCheckpoint(), LastCheckpoint()],
    )
    data = DigitsDataModule(digits=[0, 1, 2], batch_size=16, image_size=10, num_workers=0)
    trainer.fit(FinetuneClassifier(Net(), num_classes=3), data, ckpt_path=ckpt_path)
    return trainer


def test_python_goes_on_with_the_newest_run_and_refuses_where_there_is_none(
    tmp_path: Path,
) -> None:
    with pytest.raises(FileNotFoundError, match="leave `ckpt_path` out to start a new run"):
        fit(tmp_path, 1, "last")
    fit(tmp_path, 2)
    fit(tmp_path, 1)
    older = next(tmp_path.glob("lightning_logs/version_0/checkpoints/last.ckpt"))
    os.utime(older, (1, 1))

    trainer = fit(tmp_path, 4, "last")

    assert trainer.global_step == 12
    assert "version_1" in str(trainer.ckpt_path)


@pytest.mark.parametrize("fn", ["fit", "validate"])
@pytest.mark.parametrize("options", [{"save_last": None}, {"save_top_k": 0}])
def test_lightnings_own_checkpoints_are_named_where_none_is_the_last(
    tmp_path: Path, fn: str, options: dict[str, Any]
) -> None:
    def trainer() -> Trainer:
        return Trainer(
            max_epochs=1,
            limit_train_batches=1,
            limit_val_batches=1,
            num_sanity_val_steps=0,
            accelerator="cpu",
            logger=CSVLogger(tmp_path),
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[ModelCheckpoint(**options)],
        )

    data = DigitsDataModule(digits=[0, 1, 2], batch_size=16, image_size=10, num_workers=0)
    model = FinetuneClassifier(Net(), num_classes=3)
    trainer().fit(model, data)

    with pytest.raises(FileNotFoundError, match="no earlier run has left such a") as error:
        getattr(trainer(), fn)(model, datamodule=data, ckpt_path="last")
    kept = [f"'{path}'" for path in tmp_path.glob("lightning_logs/*/checkpoints/*.ckpt")]
    assert len(kept) == (0 if "save_top_k" in options else 1)
    assert all(path in str(error.value) for path in kept)


@pytest.mark.parametrize("name", ["lightning_logs", "other/name"])
@pytest.mark.parametrize("kind", ["no logger", "dirpath", "logger", "no version"])
def test_a_folder_is_searched_alone_unless_it_is_a_loggers(
    tmp_path: Path, kind: str, name: str
) -> None:
    def dirpaths(version: str) -> dict[Path, list[Path]]:
        callback = LastCheckpoint(tmp_path / version / "checkpoints" if kind == "dirpath" else None)
        options: dict[str, Any] = {"default_root_dir": tmp_path / version, "logger": False}
        if "version" in kind:
            options = {"logger": CSVLogger(tmp_path, name=version, version="")}
        elif kind != "no logger":
            options = {"logger": CSVLogger(tmp_path, name=name, version=version)}
        return checkpoint_dirpaths(Trainer(callbacks=[callback], accelerator="cpu", **options))

    (other,) = dirpaths("a_run")
    other.mkdir(parents=True)
    other.joinpath("last.ckpt").touch()
    other.joinpath("epoch=0.ckpt").touch()
    if kind == "logger":
        assert last_checkpoint(dirpaths("b_run")) == other / "last.ckpt"
        return
    for find in (last_checkpoint, best_checkpoint):
        with pytest.raises(FileNotFoundError, match=r"b_run.checkpoints'\. Give the path") as error:
            find(dirpaths("b_run"))
        assert "a_run" not in str(error.value)
    assert last_checkpoint(dirpaths("a_run")) == other / "last.ckpt"


def test_a_trainer_that_keeps_no_checkpoints_has_no_last_one() -> None:
    trainer = Trainer(max_epochs=1, logger=False, enable_checkpointing=False)
    data = DigitsDataModule(digits=[0, 1, 2], image_size=10, num_workers=0)

    with pytest.raises(FileNotFoundError, match="this Trainer keeps no checkpoints"):
        trainer.fit(FinetuneClassifier(Net(), num_classes=3), data, ckpt_path="last")

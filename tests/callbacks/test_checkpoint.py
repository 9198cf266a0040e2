"""The best checkpoint and the last."""

import errno
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lit_finetune import FinetuneClassifier
from lit_finetune.callbacks import BestCheckpoint, LastCheckpoint
from lit_finetune.datamodules import DigitsDataModule


def fit(folder: Path, ckpt_path: str | None = None, **options: Any) -> BestCheckpoint:
    """Train, with the first epoch as the best, and return who kept it."""
    best = BestCheckpoint(folder, monitor="epoch", mode="min")
    trainer = Trainer(
        **{"max_epochs": 3, **options},
        limit_train_batches=4,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[best, LastCheckpoint(folder)],
    )
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    data = DigitsDataModule(digits=[0, 1], batch_size=16, image_size=8)
    model = FinetuneClassifier(network, num_classes=2)
    trainer.fit(model, data, ckpt_path=ckpt_path, weights_only=True)
    return best


def test_the_last_checkpoint_is_that_of_the_last_epoch_though_another_is_the_best(
    tmp_path: Path,
) -> None:
    fit(tmp_path)

    assert {path.name for path in tmp_path.iterdir()} == {"epoch=0-step=4.ckpt", "last.ckpt"}
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert (last["epoch"], last["global_step"]) == (2, 12)


@pytest.mark.parametrize("rare", [{"limit_val_batches": 0}, {"check_val_every_n_epoch": 9}])
def test_the_last_checkpoint_needs_no_validation(tmp_path: Path, rare: dict[str, int]) -> None:
    fit(tmp_path, **rare)

    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"] == 2


def test_a_resumed_run_in_another_folder_remembers_the_best_and_leaves_it_there(
    tmp_path: Path,
) -> None:
    before = fit(tmp_path / "one")

    after = fit(tmp_path / "two", str(tmp_path / "one/last.ckpt"), max_epochs=5)

    assert after.best_model_path == before.best_model_path
    assert after.best_model_score == before.best_model_score
    assert Path(before.best_model_path).exists()
    assert [path.name for path in (tmp_path / "two").iterdir()] == ["last.ckpt"]


# Whose files are removed, and how they are replaced


def train(folder: Path, checkpoints: list[Callback], *, epochs: int, ckpt: Path | None) -> None:
    trainer = Trainer(
        max_epochs=epochs,
        limit_train_batches=1,
        limit_val_batches=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=checkpoints,
    )
    data = DigitsDataModule(digits=[0, 1], batch_size=16, image_size=8, num_workers=0)
    model = FinetuneClassifier(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), num_classes=2)
    trainer.fit(model, data, ckpt_path=ckpt, weights_only=True)


def keepers(kind: type[ModelCheckpoint], folder: Path) -> list[Callback]:
    """Whose newest checkpoint is always the best: each takes the place of the one before."""
    return [kind(folder, filename="{epoch}", monitor="epoch", mode="max"), LastCheckpoint(folder)]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


PLACES: dict[str, Callable[[Path], str]] = {
    "absolute": lambda victim: str(victim),
    "relative": lambda victim: os.path.relpath(victim),
    "local://": lambda victim: f"local://{victim}",
    "local:": lambda victim: f"local:{victim}",
    "file://": lambda victim: f"file://{victim}",
    "file:": lambda victim: f"file:{victim}",
    "upwards": lambda victim: f"kept/../{victim.name}",
    "through a link": lambda victim: f"kept/link/{victim.name}",
    "chained": lambda victim: f"simplecache::local://{victim}",
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of checkpoints of a run of one epoch, each made once."""

    @cache
    def write(kind: type[ModelCheckpoint], run: int = 0) -> Path:
        folder = tmp_path_factory.mktemp("written") / "kept"
        train(folder, keepers(kind, folder), epochs=1, ckpt=None)
        return folder

    return write


def tampered(checkpoint: Path, path: str, to: Path) -> Path:
    """A checkpoint that says of a path that it was the best before, and the worst to be kept."""
    content = torch.load(checkpoint, weights_only=True)
    (key,) = [key for key in content["callbacks"] if "max" in key]
    score = torch.tensor(-1)
    content["callbacks"][key] |= {
        "dirpath": str(checkpoint.parent),  # else Lightning believes none of the rest
        "best_k_models": {path: score},
        "kth_best_model_path": path,
        "kth_value": score,
        "best_model_path": path,
        "best_model_score": score,
        "last_model_path": path,
    }
    torch.save(content, to)
    return to


def of_lightning(place: str) -> Any:
    """With its own callback, which of our CheckpointIO knows; the rarer places take long."""
    marks = [] if place in ("absolute", "local://") else [pytest.mark.long]
    return pytest.param(ModelCheckpoint, place, marks=marks)


@pytest.mark.filterwarnings("ignore")  # what stays is told
@pytest.mark.parametrize(
    ("kind", "place"), [*((BestCheckpoint, p) for p in PLACES), *map(of_lightning, PLACES)]
)
def test_what_a_checkpoint_names_elsewhere_is_not_removed(
    tmp_path: Path,
    written: Callable[..., Path],
    kind: type[ModelCheckpoint],
    place: str,
) -> None:
    kept = tmp_path / "kept"
    shutil.copytree(written(kind), kept)
    victims = [tmp_path / "folder" / "thesis.txt", tmp_path / "thesis.txt"]
    victims[0].parent.mkdir()
    for victim in victims:
        victim.write_text("precious")
    (kept / "link").symlink_to(tmp_path)

    for victim in (victims[0].parent, victims[1]):
        bad = tampered(kept / "last.ckpt", PLACES[place](victim), tmp_path / "bad.ckpt")
        train(kept, keepers(kind, kept), epochs=2, ckpt=bad)

    assert [victim.read_text() for victim in victims] == ["precious"] * 2


@pytest.mark.filterwarnings("ignore")  # what stays is told
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (BestCheckpoint, "other.ckpt"),
        (BestCheckpoint, "last.ckpt"),
        (BestCheckpoint, "notes"),
        (BestCheckpoint, "epoch=1.ckpt"),  # what the resumed run would call its own
        (ModelCheckpoint, "other.ckpt"),
        (ModelCheckpoint, "last.ckpt"),
        (ModelCheckpoint, "notes"),
    ],
)
def test_of_its_own_folder_a_resumed_run_removes_only_what_it_wrote(
    tmp_path: Path,
    written: Callable[..., Path],
    kind: type[ModelCheckpoint],
    name: str,
) -> None:
    kept = tmp_path / "kept"
    shutil.copytree(written(kind), kept)
    if name == "notes":
        (kept / name).mkdir()
        (kept / name / "thesis.txt").write_text("precious")
    elif name != "last.ckpt":
        shutil.copy(written(kind, run=1) / "epoch=0.ckpt", kept / name)
    before = None if name == "notes" else (kept / name).read_bytes()

    bad = tampered(kept / "last.ckpt", str(kept / name), tmp_path / "bad.ckpt")
    train(kept, keepers(kind, kept), epochs=2, ckpt=bad)

    assert (kept / name).exists()
    if name == "notes":
        assert (kept / name / "thesis.txt").read_text() == "precious"
    elif name != "last.ckpt":
        assert (kept / name).read_bytes() == before


def test_a_run_resumed_in_its_own_folder_goes_on_with_its_own_files(tmp_path: Path) -> None:
    train(tmp_path, keepers(BestCheckpoint, tmp_path), epochs=2, ckpt=None)
    assert names(tmp_path) == {"epoch=1.ckpt", "last.ckpt"}
    (tmp_path / "epoch=0.ckpt").write_text("somebody else's")

    train(tmp_path, keepers(BestCheckpoint, tmp_path), epochs=4, ckpt=tmp_path / "last.ckpt")

    assert names(tmp_path) == {"epoch=0.ckpt", "epoch=3.ckpt", "last.ckpt"}


def test_an_address_in_a_checkpoint_is_no_best_checkpoint(tmp_path: Path) -> None:
    train(tmp_path / "a", keepers(BestCheckpoint, tmp_path / "a"), epochs=1, ckpt=None)
    bad = tampered(tmp_path / "a/last.ckpt", "http://127.0.0.1:9/x.ckpt", tmp_path / "bad.ckpt")
    best = BestCheckpoint(tmp_path / "b", monitor="epoch", mode="max")

    with pytest.warns(UserWarning, match=r"127\.0\.0\.1"):
        train(tmp_path / "b", [best], epochs=1, ckpt=bad)

    assert best.best_model_path == ""


@pytest.mark.parametrize("damage", [{"best_k_models": ["a"]}, {"best_model_path": 3}])
def test_a_damaged_list_of_checkpoints_is_told(tmp_path: Path, damage: dict[str, Any]) -> None:
    train(tmp_path, keepers(BestCheckpoint, tmp_path), epochs=1, ckpt=None)
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    (key,) = [key for key in content["callbacks"] if key.startswith("BestCheckpoint")]
    content["callbacks"][key] |= damage
    torch.save(content, tmp_path / "bad.ckpt")

    with pytest.raises(ValueError, match="list of earlier checkpoints is damaged"):
        train(tmp_path, keepers(BestCheckpoint, tmp_path), epochs=2, ckpt=tmp_path / "bad.ckpt")


class SmallDisk(Callback):
    """From the second epoch on, no file can be larger than half a checkpoint."""

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.current_epoch == 1:
            half = self.checkpoint.stat().st_size // 2
            resource.setrlimit(resource.RLIMIT_FSIZE, (half, resource.RLIM_INFINITY))


@pytest.fixture
def _limit() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("_limit")
@pytest.mark.parametrize("kind", [LastCheckpoint, BestCheckpoint, ModelCheckpoint])
def test_a_full_disk_leaves_the_checkpoint_of_before(
    tmp_path: Path, kind: type[ModelCheckpoint]
) -> None:
    own = {"filename": "last", "enable_version_counter": False}
    keeper = kind(tmp_path, **({} if kind is LastCheckpoint else own))
    path = tmp_path / "last.ckpt"

    with pytest.raises(OSError, match=r"last\.ckpt") as full:
        train(tmp_path, [SmallDisk(path), keeper], epochs=2, ckpt=None)

    assert full.value.errno == errno.EFBIG
    assert torch.load(path, weights_only=True)["epoch"] == 0
    assert names(tmp_path) == {"last.ckpt"}

"""What is kept on disk: found again by later runs, never where it would be wrong."""

import errno
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import RandomSampler

from lit_finetune.callbacks import FrozenPrefixCache
from lit_finetune.feature_cache.files import FileWriter
from tests.callbacks.prefix_runs import Net, Pictures, Run, are_equal, epochs, loader
from tests.distributed.ranks import run_ranks

GRADUAL = {0: "head", 1: "layer2", 2: "all"}
ROOT = Path(__file__).parents[2]


def kept(folder: Path, schedule: Any = "head_only", *callbacks: Callback, **options: Any) -> Run:
    return Run(schedule, FrozenPrefixCache(cache_dir=folder), *callbacks, **options)


def test_a_later_run_finds_what_an_earlier_one_has_kept(tmp_path: Path) -> None:
    first = kept(tmp_path, GRADUAL)
    second = kept(tmp_path, GRADUAL)

    assert are_equal(first, second)
    assert are_equal(first, Run(GRADUAL))
    assert sorted(path.name.split("-")[0] for path in tmp_path.iterdir()) == [
        *("head", "head", "layer2", "layer2")
    ]


def test_a_later_run_looks_at_a_few_pictures_only(tmp_path: Path) -> None:
    kept(tmp_path)
    train, val = Pictures(32), Pictures(12)

    kept(tmp_path, train=loader(train, shuffle=True), val=loader(val), num_sanity_val_steps=0)

    assert train.asked == val.asked == 10


def other_weights() -> nn.Module:
    network = Net()
    with torch.no_grad():
        network.layer1[0].weight += 1e-5
    return network


def other_statistics() -> nn.Module:
    network = Net()
    network.layer1[1].running_mean += 1e-5
    return network


class OtherForward(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * 1.0001)


CHANGES: dict[str, Callable[[], dict[str, Any]]] = {
    "weights": lambda: {"network": other_weights},
    "statistics": lambda: {"network": other_statistics},
    "forward": lambda: {"network": OtherForward},
    "pictures": lambda: {"train": loader(Other(32), shuffle=True)},
    "transform": lambda: {"train": loader(Pictures(32, lambda x: x * 1.0001), shuffle=True)},
    "batch size": lambda: {"train": loader(Pictures(32), shuffle=True, batch_size=16)},
    "precision": lambda: {"precision": "bf16-mixed"},
}


class Other(Pictures):
    """The last picture is another."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.data[-1] += 1e-3


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_kept_of_something_else_is_not_served(tmp_path: Path, change: str) -> None:
    kept(tmp_path)

    run = kept(tmp_path, **CHANGES[change]())

    assert are_equal(run, Run("head_only", **CHANGES[change]()))


def test_a_resumed_run_goes_on_with_what_was_kept(tmp_path: Path) -> None:
    def saving() -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path / "saved", save_last=True, every_n_epochs=1)

    schedule = {0: "head", 2: "layer2"}
    options = {"max_epochs": 4, "enable_checkpointing": True}
    # Of a plain loader only the order without chance is the same after resuming.
    whole = kept(tmp_path / "a", schedule, train=loader(Pictures(32)), **options)
    short = {**options, "max_epochs": 3, "limit_train_batches": 4}
    kept(tmp_path / "b", schedule, saving(), train=loader(Pictures(32)), **short)
    train = Pictures(32)

    resumed = kept(
        tmp_path / "b",
        schedule,
        train=loader(train),
        ckpt_path=tmp_path / "saved/last.ckpt",
        num_sanity_val_steps=0,
        **options,
    )

    assert epochs(resumed) == ["layer2"]
    assert train.asked == 10
    assert len(resumed.diary.losses) == 5
    assert len(whole.diary.losses) == 20


def test_half_a_cache_is_made_anew(tmp_path: Path) -> None:
    first = kept(tmp_path)
    for folder in tmp_path.iterdir():
        os.truncate(folder / "rows.bin", 40)

    assert are_equal(kept(tmp_path), first)


class Change(Callback):
    """Change what is kept in the course of an epoch, as another program may do."""

    def __init__(self, folder: Path, how: str) -> None:
        self.folder, self.how, self.changed = folder, how, 0

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step not in (1, 5):
            return
        for path in self.folder.rglob("rows.bin"):
            self.changed += 1
            if self.how == "cut short":
                os.truncate(path, 100)
            elif self.how == "removed":
                path.unlink()
            else:
                with path.open("r+b") as file:
                    file.seek(200)
                    file.write(b"other bytes" * 20)


@pytest.mark.parametrize("how", ["changed", "cut short", "removed"])
@pytest.mark.parametrize("where", ["of this run", "of later runs"])
def test_files_that_are_changed_in_a_run_do_not_change_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, where: str
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    options = {"cache_dir": tmp_path} if where == "of later runs" else {"memory_limit": 0}
    change = Change(tmp_path, how)

    run = Run("head_only", FrozenPrefixCache(**options), change, num_sanity_val_steps=0)

    assert change.changed
    assert epochs(run) == ["head", "head", "head"]
    assert are_equal(run, Run("head_only", num_sanity_val_steps=0))


def test_a_damaged_table_is_told_and_replaced_for_later_runs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    first = kept(tmp_path)
    for folder in tmp_path.iterdir():
        os.truncate(folder / "about.json", 10)

    assert are_equal(kept(tmp_path), first)
    assert "is damaged" in caplog.text + capsys.readouterr().err
    train = Pictures(32)
    assert are_equal(kept(tmp_path, train=loader(train, shuffle=True)), first)
    assert train.asked == 10
    assert len(list(tmp_path.iterdir())) == 2


def test_a_validation_that_draws_its_pictures_never_sees_a_row_that_was_not_made() -> None:
    def drawn() -> Any:
        pictures = Pictures(40)
        generator = torch.Generator().manual_seed(1)
        sampler = RandomSampler(pictures, True, 8, generator=generator)
        return loader(pictures, sampler=sampler)

    run = Run("head_only", FrozenPrefixCache(), val=drawn())

    assert are_equal(run, Run("head_only", val=drawn()))


def test_where_nothing_can_be_written_memory_is_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    run = kept(tmp_path / "file" / "cache")

    assert epochs(run) == ["head", "head", "head"]
    assert are_equal(run, Run("head_only"))


def test_where_nothing_can_be_kept_the_pictures_are_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    cache = FrozenPrefixCache(cache_dir=tmp_path / "file" / "cache", memory_limit=0)

    run = Run("head_only", cache)

    assert epochs(run) == ["pictures", "pictures", "pictures"]
    assert are_equal(run, Run("head_only"))
    assert (
        "the input of `head` for 32 training pictures is not kept"
        in caplog.text + capsys.readouterr().err
    )


def test_a_disk_that_fills_while_it_is_written_to_leaves_the_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = 0
    write = FileWriter.write

    def until_full(self: FileWriter, *batch: Any) -> None:
        nonlocal written
        written += 1
        if written > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, *batch)

    monkeypatch.setattr(FileWriter, "write", until_full)

    run = kept(tmp_path)

    assert written > 2
    assert epochs(run) == ["pictures", "pictures", "pictures"]
    assert are_equal(run, Run("head_only"))
    assert not list(tmp_path.iterdir())


def test_what_is_larger_than_the_memory_may_hold_is_in_a_file_of_this_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    seen: list[str] = []

    class Look(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            seen.extend(path.name for path in tmp_path.glob("lit_finetune-*/*"))

    run = Run("head_only", FrozenPrefixCache(memory_limit=0), Look())

    assert are_equal(run, Run("head_only"))
    assert set(seen) == {"training-head", "validation-head"}
    assert not list(tmp_path.iterdir())


def test_a_run_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    class Broken(Pictures):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            if self.asked > 20:
                raise OSError("the picture is broken")
            return super().__getitem__(index)

    with pytest.raises(OSError, match="the picture is broken"):
        kept(tmp_path, train=loader(Broken(32)))

    assert not list(tmp_path.iterdir())


def kept_and_saved(folder: Path, result: Path) -> None:
    """What each of two processes does, which know nothing of each other."""
    run = kept(folder, GRADUAL)
    torch.save({"losses": run.diary.losses, **run.state()}, result)


@pytest.mark.long
def test_two_runs_that_share_a_folder_end_like_one_alone(tmp_path: Path) -> None:
    def start(number: int) -> None:
        arguments = (tmp_path / "shared", tmp_path / f"{number}.pt")
        run_ranks(kept_and_saved, *arguments, folder=tmp_path, ranks=1)

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(start, range(2))) == [None, None]

    alone = Run(GRADUAL)
    for number in range(2):
        found = torch.load(tmp_path / f"{number}.pt", weights_only=True)
        assert found.pop("losses") == alone.diary.losses
        assert all(torch.equal(found[name], value) for name, value in alone.state().items())
    assert len(list((tmp_path / "shared").iterdir())) == 4

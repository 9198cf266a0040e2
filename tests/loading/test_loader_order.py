"""A DataLoader of the user's own goes on at the batch where the run stopped, in the same order."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
    get_worker_info,
)

from lit_finetune import FinetuneClassifier
from lit_finetune.callbacks import LastCheckpoint
from tests.resuming.resumed_runs import Net, StopBefore, differences

PICTURES, BATCH, EPOCHS = 22, 4, 3
PER_EPOCH = 6


class Varied(TensorDataset):
    """Pictures that say which one they are, each time varied by all global generators."""

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        picture, label = super().__getitem__(index)
        return picture + torch.rand(()) + np.random.rand() + random.random(), label


def data(kind: type[TensorDataset] = Varied) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn(PICTURES, 3, 10, 10, generator=generator)
    return kind(pictures, torch.arange(PICTURES) % 3)


def brightened(items: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """A batch, varied as a whole."""
    pictures, labels = default_collate(items)
    return [pictures + torch.rand(()), labels]


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(7)


LOADERS: dict[str, Callable[[], dict[str, Any]]] = {
    "sequential": lambda: {"batch_size": BATCH},
    "shuffled": lambda: {"batch_size": BATCH, "shuffle": True},
    "shuffled by a generator": lambda: {
        "batch_size": BATCH,
        "shuffle": True,
        "generator": seeded(),
    },
    "random sampler": lambda: {
        "batch_size": BATCH,
        "sampler": RandomSampler(data(), generator=seeded()),
    },
    "with replacement": lambda: {
        "batch_size": BATCH,
        "sampler": RandomSampler(data(), replacement=True, generator=seeded()),
    },
    "weighted": lambda: {
        "batch_size": BATCH,
        "sampler": WeightedRandomSampler([0.1, 0.9] * (PICTURES // 2), PICTURES),
    },
    "batch sampler": lambda: {
        "batch_sampler": BatchSampler(RandomSampler(data(), generator=seeded()), BATCH, False)
    },
}


class Seen(Callback):
    """Which pictures each batch of the run brought."""

    def __init__(self) -> None:
        self.batches: dict[tuple[int, int], list[float]] = {}

    def on_train_batch_start(self, trainer: Trainer, _: Any, batch: Any, batch_idx: int) -> None:
        self.batches[trainer.current_epoch, batch_idx] = batch[0][:, 0, 0, 0].tolist()


def train(
    folder: Path,
    loader: DataLoader[Any],
    *,
    seed: int = 1,
    stop: int | None = None,
    resume: bool = False,
    **options: Any,
) -> tuple[dict[str, Any], dict[tuple[int, int], list[float]]]:
    """Train from the start or from `last.ckpt`: the weights, and the pictures of each batch."""
    seed_everything(seed, verbose=False)
    model = FinetuneClassifier(Net(), num_classes=3, lr_scheduler="constant")
    seen = Seen()
    trainer = Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[LastCheckpoint(folder, every_n_train_steps=1), StopBefore(stop), seen],
        **options,
    )
    path = folder / "last.ckpt" if resume else None
    try:
        trainer.fit(model, loader, ckpt_path=path)
    except Exception as error:
        if stop is None or type(error).__name__ != "Stop":
            raise
    return model.state_dict(), seen.batches


# The order is made in this process, whatever the workers: three kinds stand for all.
IN_WORKERS = [
    pytest.param("shuffled", 2),
    pytest.param("shuffled by a generator", 2, marks=pytest.mark.long),
    pytest.param("batch sampler", 2, marks=pytest.mark.long),
    *(
        pytest.param(name, 2, marks=[pytest.mark.long, pytest.mark.sweep])
        for name in LOADERS
        if name not in ("shuffled", "shuffled by a generator", "batch sampler")
    ),
]


@pytest.mark.parametrize(("name", "num_workers"), [*((name, 0) for name in LOADERS), *IN_WORKERS])
def test_a_loader_goes_on_with_the_pictures_of_the_unbroken_run(
    tmp_path: Path, name: str, num_workers: int
) -> None:
    def loader() -> DataLoader[Any]:
        options = {"num_workers": num_workers, "collate_fn": brightened, **LOADERS[name]()}
        return DataLoader(data(), **options)

    whole, wanted = train(tmp_path / "whole", loader())
    seen: dict[tuple[int, int], list[float]] = {}
    for place, stop in enumerate((8, PER_EPOCH * 2, None)):  # amid an epoch, and at an end
        end, batches = train(
            tmp_path / "broken", loader(), stop=stop, resume=place > 0, seed=place + 1
        )
        seen |= batches

    assert differences(wanted, seen) == []
    assert differences(whole, end) == []


@pytest.mark.slow
def test_persistent_workers_and_a_loader_that_is_used_again(tmp_path: Path) -> None:
    def make() -> DataLoader[Any]:
        options = {"num_workers": 1, "persistent_workers": True, "generator": seeded()}
        return DataLoader(data(), BATCH, shuffle=True, **options)

    loader = make()
    kinds = type(loader.sampler), type(loader.batch_sampler)
    _, unbroken = train(tmp_path / "two", make())
    _, first = train(tmp_path / "one", loader, stop=9)
    _, rest = train(tmp_path / "one", loader, resume=True)

    assert (type(loader.sampler), type(loader.batch_sampler)) == kinds
    assert differences(unbroken, first | rest) == []


def test_a_loader_that_comes_anew_for_each_epoch_goes_on_as_well(tmp_path: Path) -> None:
    def run(folder: str, **options: Any) -> tuple[dict[str, Any], dict[tuple[int, int], Any]]:
        loader = DataLoader(data(), BATCH, shuffle=True)
        return train(tmp_path / folder, loader, reload_dataloaders_every_n_epochs=1, **options)

    whole, wanted = run("whole")
    _, first = run("broken", stop=8)
    end, rest = run("broken", resume=True, seed=2)

    assert differences(wanted, first | rest) == []
    assert differences(whole, end) == []


class OfItsOwn(TensorDataset):
    """Varied by a generator that nobody knows."""

    def __init__(self, *tensors: Tensor) -> None:
        super().__init__(*tensors)
        self.draw = np.random.default_rng(0).random

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        picture, label = super().__getitem__(index)
        return picture + self.draw(), label


class ByPythonsRandom(Sampler[int]):
    """An order that nobody can repeat."""

    def __iter__(self) -> Iterator[int]:
        return iter(random.Random().sample(range(PICTURES), PICTURES))

    def __len__(self) -> int:
        return PICTURES


class Stream(IterableDataset[Any]):
    """Pictures that come one after the other."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        pictures: Dataset[Any] = data()
        return (pictures[number] for number in range(PICTURES))


@pytest.mark.parametrize(
    ("loader", "words"),
    [
        (lambda: DataLoader(data(), BATCH, sampler=ByPythonsRandom()), "brings another order"),
        (lambda: DataLoader(Stream(), BATCH), "the epoch starts again"),
        (lambda: DataLoader(data(OfItsOwn), BATCH), "OfItsOwn draws random numbers from a gen"),
    ],
)
def test_what_cannot_be_repeated_is_told(
    tmp_path: Path, loader: Callable[[], DataLoader[Any]], words: str
) -> None:
    train(tmp_path, loader(), stop=3)

    with pytest.warns(UserWarning, match=words):
        train(tmp_path, loader(), resume=True, max_steps=4)


class Numbered(Dataset[Any]):
    """Pictures of which some attributes are set in a worker."""

    files: Any = None

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        assert self.files == "opened"
        return torch.zeros(3, 10, 10), index % 3

    def __len__(self) -> int:
        return PICTURES


def open_files(_: int) -> None:
    info = get_worker_info()
    assert info is not None
    assert isinstance(info.dataset, Numbered)
    info.dataset.files = "opened"  # type: ignore[attr-defined]


def test_a_worker_prepares_the_users_own_dataset(tmp_path: Path) -> None:
    train(tmp_path, DataLoader(Numbered(), BATCH, num_workers=1, worker_init_fn=open_files))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_hooks_find_the_users_own_dataset(num_workers: int) -> None:
    dataset = data()
    found: list[Any] = []

    class Look(Callback):
        def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
            found.append(trainer.train_dataloader.dataset)  # type: ignore[union-attr]

    loader = DataLoader(dataset, BATCH, shuffle=True, num_workers=num_workers)
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[Look()],
    )
    trainer.fit(FinetuneClassifier(Net(), num_classes=3), loader)

    assert all(each is dataset for each in found)
    assert len(found) == 2
    assert isinstance(trainer.train_dataloader, DataLoader)
    assert trainer.train_dataloader.collate_fn is loader.collate_fn


def other_pictures(change: str) -> TensorDataset:
    dataset = data()
    images, labels = dataset.tensors
    if change == "labels":
        return Varied(images, labels.flip(0))
    return Varied(images.flip(0) if change == "order" else images + 1e-3, labels)


@pytest.mark.parametrize("change", ["labels", "order", "contents"])
def test_other_pictures_are_refused_amid_an_epoch_and_told_at_its_end(
    tmp_path: Path, change: str
) -> None:
    train(tmp_path / "amid", DataLoader(data(), BATCH), stop=3)
    with pytest.raises(ValueError, match="within an epoch of other training pictures"):
        train(tmp_path / "amid", DataLoader(other_pictures(change), BATCH), resume=True)

    train(tmp_path / "end", DataLoader(data(), BATCH), stop=PER_EPOCH)
    with pytest.warns(UserWarning, match="resumes with other training pictures"):
        train(tmp_path / "end", DataLoader(other_pictures(change), BATCH), resume=True)

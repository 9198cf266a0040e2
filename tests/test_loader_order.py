"""A DataLoader of the user's own goes on at the batch where the run stopped, in the same order."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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
)

from lit_finetune import FinetuneClassifier
from lit_finetune.callbacks import LastCheckpoint
from tests.resumed_runs import Net, StopBefore, differences

PICTURES, BATCH, EPOCHS = 22, 4, 3
PER_EPOCH = 6


def data() -> TensorDataset:
    """Pictures that say which one they are."""
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(
        torch.randn(PICTURES, 3, 10, 10, generator=generator), torch.arange(PICTURES) % 3
    )


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


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("name", LOADERS)
def test_a_loader_goes_on_with_the_pictures_of_the_unbroken_run(
    tmp_path: Path, name: str, num_workers: int
) -> None:
    def loader() -> DataLoader[Any]:
        return DataLoader(data(), num_workers=num_workers, **LOADERS[name]())

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
        (lambda: DataLoader(Stream(), BATCH), "the epoch begins anew"),
    ],
)
def test_an_order_that_cannot_be_repeated_is_told(
    tmp_path: Path, loader: Callable[[], DataLoader[Any]], words: str
) -> None:
    train(tmp_path, loader(), stop=3)

    with pytest.warns(UserWarning, match=words):
        train(tmp_path, loader(), resume=True, max_steps=4)

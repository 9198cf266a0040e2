"""Memory does not grow with the steps of a run, whatever its phase and whatever is kept."""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lit_finetune.callbacks import FrozenPrefixCache
from lit_finetune.splitting.split import forward_between, forward_from, forward_prefix
from tests.callbacks.prefix_runs import Net, Pictures, Run

STEPS = 9
"""Of an epoch; each of two pictures."""


class Flattened(Net):
    """The head is given a view."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer2(self.layer1(self.stem(x)))
        return self.fc(self.drop(nn.functional.adaptive_avg_pool2d(h, 1).flatten(1)))


class FirstToken(Net):
    """The head is given a part of a tensor, as that of a vision transformer is."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer2(self.layer1(self.stem(x))).flatten(2).transpose(1, 2)
        return self.fc(h[:, 0])


class Residual(Net):
    """What enters `layer2` is used behind it as well."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer1(self.stem(x))
        return self.fc((self.layer2(h).mean(1, keepdim=True) + h).mean((2, 3)).repeat(1, 2))


def num_alive() -> int:
    """The tensors that exist now, those that only the garbage collector would remove among them."""
    return sum(issubclass(type(each), Tensor) for each in gc.get_objects())


class Alive(Callback):
    """The number of live tensors in the course of each epoch of training and validation."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if args[-1] in (4, STEPS - 2):
            self.seen.append(num_alive())

    def on_validation_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if args[2] in (4, STEPS - 2):
            self.seen.append(num_alive())

    on_predict_batch_start = on_validation_batch_start


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def grown(seen: list[int]) -> list[int]:
    """By how many tensors each epoch ends with more than it began with."""
    return [after - before for before, after in zip(seen[::2], seen[1::2], strict=True)]


def run(schedule: Any, *callbacks: Callback, network: Any = Flattened, workers: int = 0) -> Alive:
    alive = Alive()
    kept = {"num_workers": workers, "persistent_workers": workers > 0, "batch_size": 2}
    Run(
        schedule,
        *callbacks,
        alive,
        network=network,
        train=DataLoader(Pictures(2 * STEPS), shuffle=True, **kept),
        val=DataLoader(Pictures(2 * STEPS), **kept),
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    return alive


CACHES = {
    "none": lambda folder: [],
    "memory": lambda folder: [FrozenPrefixCache()],
    "a file of this run": lambda folder: [FrozenPrefixCache(memory_limit=0)],
    "files of later runs": lambda folder: [FrozenPrefixCache(cache_dir=folder)],
    "views in half precision": lambda folder: [FrozenPrefixCache(views=2, dtype="fp16")],
}


@pytest.mark.parametrize(
    "cache",
    [
        "none",
        "memory",
        pytest.param("a file of this run", marks=pytest.mark.sweep),
        pytest.param("files of later runs", marks=pytest.mark.sweep),
        pytest.param("views in half precision", marks=pytest.mark.sweep),
    ],
)
def test_steps_leave_no_tensor_behind(tmp_path: Path, cache: str) -> None:
    seen = run({0: "head", 1: "layer2", 2: "all"}, *CACHES[cache](tmp_path)).seen

    assert len(seen) == 12
    assert max(grown(seen)) <= 0


@pytest.mark.parametrize(
    ("schedule", "network"),
    [
        pytest.param("head_only", Flattened, marks=pytest.mark.sweep),
        pytest.param("head_only", FirstToken, marks=pytest.mark.sweep),
        ("full", Residual),
        pytest.param("head_only", Residual, marks=pytest.mark.sweep),
        pytest.param("full", Flattened, marks=pytest.mark.sweep),
        pytest.param("full", FirstToken, marks=pytest.mark.sweep),
    ],
)
def test_epochs_leave_no_tensor_behind(schedule: str, network: Any) -> None:
    seen = run(schedule, *CACHES["memory"](Path()), network=network).seen

    assert seen[-4:] == seen[-8:-4]


@pytest.mark.sweep
@pytest.mark.parametrize("cache", ["none", "memory"])
def test_steps_with_workers_leave_no_tensor_behind(tmp_path: Path, cache: str) -> None:
    seen = run("head_only", *CACHES[cache](tmp_path), workers=1).seen

    assert max(grown(seen)) <= 2  # batches that wait


@pytest.mark.parametrize("network", [Flattened, FirstToken, Residual])
@pytest.mark.parametrize("upto", ["layer2", pytest.param("head", marks=pytest.mark.sweep)])
def test_halves_of_a_network_leave_no_tensor_behind(network: Any, upto: str) -> None:
    net, seen = network().eval(), []
    for _ in range(4):
        early = forward_prefix(net, torch.ones(2, 3, 8, 8), "layer1")
        h = forward_between(net, early, "layer1", upto)
        forward_from(net, h, upto).sum().backward()
        net.zero_grad()
        del early, h
        seen.append(num_alive())

    assert seen[1:] == seen[1:2] * 3


def test_predicting_leaves_no_tensor_behind() -> None:
    alive = Alive()
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[alive],
    )
    model = Run("head_only", max_epochs=1).model

    loader = DataLoader(Pictures(2 * STEPS), batch_size=2)
    trainer.predict(model, loader, return_predictions=False)

    assert grown(alive.seen) == [0]

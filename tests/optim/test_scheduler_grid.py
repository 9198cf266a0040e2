"""Every scheduler of torch in a run whose groups join late, against one that had them all along."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader, TensorDataset

from lit_finetune.callbacks import FreezeUnfreezeCallback
from tests.optim.test_lr_schedulers import BASE, FLOORED, SCHEDULERS, Make, close

SCALES = {"fc": 1.0, "layer1": 0.1, "stem": 0.01}
EPOCHS, BATCHES = 5, 4
JOINS = {"fc": 0, "layer1": BATCHES, "stem": 10}
SCHEDULE = [{"modules": "fc"}, {"epoch": 1, "modules": "layer1"}, {"step": 10, "modules": "stem"}]
FLOORS = {f"{name} with a floor": make for name, make in FLOORED.items()}
EVERY: dict[str, Make] = {**SCHEDULERS, **FLOORS}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layer1, self.fc = nn.Linear(5, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer1(self.stem(x)))


def optimizer_of(net: nn.Module) -> SGD:
    groups = [
        {"params": list(getattr(net, name).parameters()), "name": name, "lr": BASE * scale}
        for name, scale in SCALES.items()
    ]
    return SGD(groups, lr=BASE, momentum=0.9)


class Plain(LightningModule):
    """A user's module whose optimizer has a group for each layer."""

    def __init__(self, make: Make, interval: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = Net()
        self.make, self.interval = make, interval

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("loss", 1.0)  # never better

    def configure_optimizers(self) -> Any:
        optimizer = optimizer_of(self.net)
        scheduler = self.make(optimizer, list(SCALES.values()))
        config = {"scheduler": scheduler, "interval": self.interval, "monitor": "loss"}
        return [optimizer], [{**config, "strict": False}]


class Rates(Callback):
    """The rate and momentum of each group at each step; a checkpoint of each step if asked for."""

    def __init__(self, folder: Path | None = None) -> None:
        self.seen: dict[int, dict[str, Any]] = {}
        self.folder = folder

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        groups = trainer.optimizers[0].param_groups
        rates = {g["name"].split("/")[-1]: (float(g["lr"]), g["momentum"]) for g in groups}
        self.seen[trainer.global_step] = rates

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self.folder:
            trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


def fit(
    make: Make, interval: str, rates: Rates, *, validates: int | None, ckpt_path: Any = None
) -> Plain:
    inputs = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(inputs, torch.arange(8) % 3)
    loader = DataLoader(data, batch_size=2)
    module = Plain(make, interval)
    trainer = Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=validates or 1,
        limit_val_batches=1.0 if validates else 0,
        callbacks=[FreezeUnfreezeCallback(SCHEDULE), rates],
    )
    trainer.fit(module, loader, loader, ckpt_path=ckpt_path, weights_only=True)
    return module


def by_plain_torch(make: Make, interval: str, *, validates: int | None) -> list[dict[str, Any]]:
    """What each group would have had at each step, all of them there from the beginning."""
    optimizer = optimizer_of(Net())
    scheduler = make(optimizer, list(SCALES.values()))
    seen: list[dict[str, Any]] = []
    is_known = False

    def move() -> None:
        if not isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step()
        elif is_known:
            scheduler.step(1.0)

    for epoch in range(EPOCHS):
        for batch in range(BATCHES):
            groups = optimizer.param_groups
            seen.append({g["name"]: (float(g["lr"]), g["momentum"]) for g in groups})
            optimizer.step()
            if batch + 1 == BATCHES:  # Lightning validates before a plateau's step
                is_known = is_known or bool(validates and (epoch + 1) % validates == 0)
            if interval == "step":
                move()
        if interval == "epoch":
            move()
    return seen


def situations() -> Iterator[Any]:
    """Validation is nothing to a scheduler but a plateau; a few stand for all in the short run."""
    short = {
        ("OneCycleLR", "step", 1),
        ("CyclicLR", "epoch", None),
        ("SequentialLR, nested", "step", 1),
        ("CosineAnnealingLR with a floor", "epoch", None),
        ("ReduceLROnPlateau", "epoch", 2),
    }
    for name in EVERY:
        counts = (1, 2, None)
        for interval in ("step", "epoch"):
            own = counts if "Plateau" in name else (1,) if interval == "step" else (None,)
            for validates in own:
                marks = () if (name, interval, validates) in short else (pytest.mark.long,)
                yield pytest.param(name, interval, validates, marks=marks)


@pytest.mark.parametrize(("name", "interval", "validates"), situations())
def test_late_groups_move_as_torch_moves_groups_that_were_there_all_along(
    name: str, interval: str, validates: int | None, tmp_path: Path
) -> None:
    make = EVERY[name]
    whole = Rates(tmp_path)
    module = fit(make, interval, whole, validates=validates)

    expected = by_plain_torch(make, interval, validates=validates)
    for step, rates in whole.seen.items():
        assert rates.keys() == {layer for layer, begin in JOINS.items() if step >= begin}
        for layer, (rate, momentum) in rates.items():
            assert rate == close(expected[step][layer][0]), f"{layer} at step {step}"
            assert momentum == close(expected[step][layer][1])
    for step in (2, 10, 13):  # amid an epoch, where a group joins, behind all of them
        again = Rates()
        path = tmp_path / f"{step}.ckpt"
        resumed = fit(make, interval, again, validates=validates, ckpt_path=path)
        assert again.seen == {at: whole.seen[at] for at in whole.seen if at >= step}
        pairs = zip(module.parameters(), resumed.parameters(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)

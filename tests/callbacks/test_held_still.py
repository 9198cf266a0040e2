"""Frozen parameters stand still under every optimizer, and what trains later moves."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn, optim
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from lit_finetune.callbacks import FreezeUnfreezeCallback

MakeOptimizer = Callable[[nn.Module], Optimizer]


class Net(nn.Module):
    """Three stages and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.layer1 = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer2(self.layer1(self.stem(x))).mean((2, 3)))


class Plain(LightningModule):
    """A user's own module."""

    def __init__(self, make_optimizer: MakeOptimizer) -> None:
        super().__init__()
        self.net = Net()
        self.make_optimizer = make_optimizer

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Optimizer:
        return self.make_optimizer(self.net)


class StandsStill(Callback):
    """Checks after each epoch all that is frozen, and notes what moved in it."""

    def __init__(self) -> None:
        self.moved: list[set[str]] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start = {name: value.clone() for name, value in pl_module.state_dict().items()}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        now = pl_module.state_dict()
        changed = {name for name in now if not torch.equal(now[name], self.start[name])}
        self.moved.append({name.split(".")[1] for name in changed})
        holders = trainer.optimizers
        held = [p for o in holders for group in o.param_groups for p in group["params"]]
        trained = [p for p in pl_module.parameters() if p.requires_grad]
        assert sorted(map(id, held)) == sorted(map(id, trained))
        for name, parameter in pl_module.named_parameters():
            if not parameter.requires_grad:
                assert parameter.grad is None, name
                assert not any(parameter in optimizer.state for optimizer in holders), name


SCHEDULE = [
    {"modules": "head"},
    {"epoch": 1, "modules": "layer2"},
    {"epoch": 2, "modules": "layer1", "freeze": "layer2"},
    {"epoch": 3, "modules": "layer2", "freeze": ["layer1", "head"]},
]
MOVES = [{"fc"}, {"fc", "layer2"}, {"fc", "layer1"}, {"layer2"}]


def follow(model: LightningModule) -> list[set[str]]:
    """Train in four phases, of which two freeze again; what moved in each."""
    images = torch.randn(8, 3, 10, 10)
    watch = StandsStill()
    trainer = Trainer(
        max_epochs=4,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[FreezeUnfreezeCallback(SCHEDULE), watch],
    )
    data = TensorDataset(images, torch.arange(8) % 3)
    trainer.fit(model, DataLoader(data, batch_size=4))
    return watch.moved


def torch_optimizer(name: str, **options: Any) -> MakeOptimizer:
    return lambda net: getattr(optim, name)(net.parameters(), **{"lr": 0.01, **options})


OPTIMIZERS: dict[str, MakeOptimizer] = {
    "sgd": torch_optimizer("SGD", momentum=0.9, nesterov=True, weight_decay=0.1),
    "amsgrad": torch_optimizer("AdamW", amsgrad=True, weight_decay=0.1),
    "rmsprop": torch_optimizer("RMSprop", momentum=0.9, centered=True, weight_decay=0.1),
    "rprop": torch_optimizer("Rprop"),
    "tensor as rate": torch_optimizer("AdamW", lr=torch.tensor(0.01), weight_decay=0.1),
}
for each in ("Adam", "AdamW", "Adagrad", "Adafactor", "NAdam", "RAdam", "Adamax", "Adadelta"):
    OPTIMIZERS[each.lower()] = torch_optimizer(each, weight_decay=0.1)
for each in ("SGD", "Adam", "AdamW", "Adagrad"):
    for kind in ("foreach", "fused"):
        OPTIMIZERS[f"{kind} {each}"] = torch_optimizer(each, weight_decay=0.1, **{kind: True})


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_parameters_stand_still_under_optimizers_of_torch(name: str) -> None:
    assert follow(Plain(OPTIMIZERS[name])) == MOVES


@pytest.mark.parametrize(
    "name", ["sgdw", "nadamw", "lamb", "adamp", "lion", "adopt", "muon", "lookahead_adamw"]
)
def test_frozen_parameters_stand_still_under_optimizers_of_timm(name: str) -> None:
    create = pytest.importorskip("timm.optim").create_optimizer_v2
    assert follow(Plain(partial(create, opt=name, lr=0.01, weight_decay=0.1))) == MOVES


class MuonAndAdam(Plain):
    """Muon for matrices, and another optimizer for the rest."""

    def __init__(self) -> None:
        super().__init__(torch_optimizer("AdamW"))
        self.net.layer2 = nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.Unflatten(1, (8, 1, 1)))
        self.net(torch.zeros(2, 3, 10, 10))
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        matrices = [p for p in self.net.parameters() if p.ndim == 2]
        rest = [p for p in self.net.parameters() if p.ndim != 2]
        return [optim.Muon(matrices, lr=0.01, weight_decay=0.1), optim.AdamW(rest, lr=0.01)]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.skipif(not hasattr(optim, "Muon"), reason="this torch has no Muon")
def test_frozen_parameters_stand_still_under_muon_beside_another() -> None:
    assert follow(MuonAndAdam()) == MOVES

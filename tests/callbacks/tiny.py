"""A network that trains in milliseconds, and what watches it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader, TensorDataset

from lit_finetune.callbacks import FreezeUnfreezeCallback

BATCHES = 4
HEAD = {"modules": "head"}
PLAIN = partial(SGD, lr=0.1)


class Tiny(LightningModule):
    """Two stages with statistics, and a metric that goes as the test wants it."""

    def __init__(
        self,
        make_optimizer: Callable[..., Optimizer] = PLAIN,
        metric: Callable[[int], float] = float,
        gamma: float = 0.5,
    ) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.3))
        self.fc = nn.Linear(4, 3)
        self.make_optimizer = make_optimizer
        self.metric = metric
        self.gamma = gamma
        self.validations = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer2(self.layer1(x)))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val/score", self.metric(self.validations))

    def on_validation_epoch_end(self) -> None:
        self.validations += not self.trainer.sanity_checking

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self.parameters())
        return [optimizer], [ExponentialLR(optimizer, self.gamma)]


class Steps(Callback):
    """What each batch moved, what was in train mode, and the rates between the steps."""

    def __init__(self) -> None:
        self.moved: list[str] = []
        self.training: list[str] = []
        self.rates: list[list[float]] = []
        self.before: dict[str, Tensor] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.before = {name: p.detach().clone() for name, p in pl_module.named_parameters()}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        named = pl_module.named_parameters()
        changed = {name.split(".")[0] for name, p in named if not torch.equal(p, self.before[name])}
        awake = {n for n, m in pl_module.named_children() if any(x.training for x in m.modules())}
        self.moved.append(" ".join(sorted(changed)))
        self.training.append(" ".join(sorted(awake)))
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])


def loader() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(16, 5, generator=generator), torch.arange(16) % 3)
    return DataLoader(data, batch_size=16 // BATCHES)


def fit(
    model: LightningModule,
    schedule: Any,
    *callbacks: Callback,
    train_bn: bool = False,
    **options: Any,
) -> Trainer:
    trainer = Trainer(
        **{
            "max_epochs": 3,
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **options,
        },
        callbacks=[FreezeUnfreezeCallback(schedule, train_bn), *callbacks],
    )
    trainer.fit(model, loader(), loader())
    return trainer


def moved_in(schedule: Any, model: LightningModule | None = None, **options: Any) -> list[str]:
    """What each batch of a run moves: one text for each."""
    steps = Steps()
    fit(model or Tiny(), schedule, steps, **options)
    return steps.moved


ONE, TWO, ALL = "fc", "fc layer2", "fc layer1 layer2"
"""What moves, by the blocks that train."""


def scored(*values: float, make_optimizer: Callable[..., Optimizer] = PLAIN) -> Tiny:
    """A model whose metric takes these values, one after the other, and then the last one."""
    return Tiny(make_optimizer, lambda number: values[min(number, len(values) - 1)])


def stalls(**options: Any) -> dict[str, Any]:
    return {"on_plateau": {"monitor": "val/score", "patience": 2, **options}}

"""The training that every system is put to: one tiny network, the same batches, an observer."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Optimizer
from typing_extensions import override

from benchmarks.peers.systems import Request, System

LR = 0.1
BATCHES = 3
Batch = tuple[Tensor, Tensor]
MakeOptimizer = Callable[["TinyNet"], Optimizer]


def of_head(model: "TinyNet") -> Optimizer:
    """What Lightning's example of BackboneFinetuning has: the head's parameters at first."""
    return SGD(model.head.parameters(), lr=LR, momentum=0.9)


class Stage(nn.Module):
    """Convolution, batch statistics and dropout: all that has to stand still when frozen."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.2)

    @override
    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.drop(functional.relu(self.norm(self.conv(x))))
        return features


class TinyNet(LightningModule):
    """A backbone of two blocks, and a head.

    Args:
        make_optimizer: The module's optimizer.
        make_scheduler: Its scheduler, if it has one.
        interval: When the scheduler steps.
        width: Channels of the first block.
    """

    steps_taken = 0
    """Training steps in this process; where it is 0, an error was raised before training."""

    def __init__(
        self,
        make_optimizer: MakeOptimizer = of_head,
        make_scheduler: Callable[[Optimizer], Any] | None = None,
        interval: str = "epoch",
        width: int = 4,
    ) -> None:
        super().__init__()
        self.make_optimizer = make_optimizer
        self.make_scheduler = make_scheduler
        self.interval = interval
        self.backbone = nn.Sequential()
        self.backbone.add_module("layer1", Stage(3, width))
        self.backbone.add_module("layer2", Stage(width, 8))
        self.head = nn.Linear(8, 3)

    @override
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.backbone(x).mean((2, 3)))
        return logits

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        TinyNet.steps_taken += 1
        torch.manual_seed(self.global_step)  # so that a resumed run drops the same features
        return self.loss(batch)

    @override
    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch), sync_dist=True)

    @override
    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.log("test_loss", self.loss(batch), sync_dist=True)

    @override
    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self(batch[0])

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy."""
        images, labels = batch
        return functional.cross_entropy(self(images), labels)

    @override
    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self)
        if self.make_scheduler is None:
            return optimizer
        scheduler = self.make_scheduler(optimizer)
        config = {"scheduler": scheduler, "interval": self.interval, "monitor": "val_loss"}
        return {"optimizer": optimizer, "lr_scheduler": config}


class Batches:
    """The same few batches in every epoch; a run resumed amid an epoch goes on where it was."""

    def __init__(self, seed: int, count: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.batches = [
            (torch.randn(8, 3, 11, 11, generator=generator), torch.arange(8) % 3)
            for _ in range(count)
        ]
        self.position = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        start = self.position % len(self)
        for index in range(start, len(self)):
            self.position = index + 1
            yield self.batches[index]

    def state_dict(self) -> dict[str, int]:
        """Lightning keeps it in the checkpoint."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Lightning calls it before the first batch."""
        self.position = state["position"]


@dataclass
class Observer(Callback):
    """Notes the weights at each epoch's end, and the rate of each parameter at each step."""

    weights: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    rates: list[tuple[int, dict[str, float]]] = field(default_factory=list)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.weights[trainer.current_epoch - 1] = copied_state(pl_module)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.weights[trainer.current_epoch] = copied_state(pl_module)

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        rate_of = {id(p): float(g["lr"]) for g in optimizer.param_groups for p in g["params"]}
        named = pl_module.named_parameters()
        rates = {name: rate_of[id(p)] for name, p in named if id(p) in rate_of}
        self.rates.append((trainer.current_epoch, rates))


@dataclass
class Run:
    """A training that is over."""

    model: TinyNet
    trainer: Trainer
    seen: Observer
    checkpoints: list[Path]


def make_model(system: System, request: Request, **options: Any) -> TinyNet:
    """The network, the same weights each time, as the system wants it before training."""
    torch.manual_seed(0)
    model = TinyNet(**options)
    system.prepare(model, request)
    return model


def make_trainer(
    request: Request, folder: Path, callbacks: Sequence[Callback], **options: Any
) -> Trainer:
    """A Trainer on the CPU that keeps a checkpoint of each epoch."""
    checkpoints = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    return Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        max_epochs=request.max_epochs,
        callbacks=[*callbacks, checkpoints],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"devices": 1, **options},
    )


def train(
    system: System,
    request: Request,
    folder: Path,
    *,
    model: TinyNet | None = None,
    callbacks: Sequence[Callback] = (),
    resume_from: Path | None = None,
    **options: Any,
) -> Run:
    """Train as requested; what is not given is made anew, the same each time."""
    model = model or make_model(system, request)
    seen = Observer()
    used = [*(callbacks or system.callbacks(request)), seen]
    trainer = make_trainer(request, folder, used, **options)
    fit(system, trainer, model, resume_from)
    return Run(model, trainer, seen, sorted(folder.glob("epoch=*.ckpt")))


def fit(system: System, trainer: Trainer, model: TinyNet, resume_from: Path | None = None) -> None:
    """Train on the batches of this process."""
    rank = trainer.global_rank
    system.fit(trainer, model, Batches(rank + 1, BATCHES), Batches(0, 1), resume_from)


def copied_state(model: nn.Module) -> dict[str, Tensor]:
    """Weights and buffers as they are now."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def largest_difference(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """The largest difference between two states of one network."""
    return max((left[name].double() - right[name].double()).abs().max().item() for name in left)


def moved(before: dict[str, Tensor], after: dict[str, Tensor], model: nn.Module) -> set[str]:
    """The parameters that differ between two states."""
    names = [name for name, _ in model.named_parameters()]
    return {name for name in names if not torch.equal(before[name], after[name])}

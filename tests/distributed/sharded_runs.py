"""Several trainings, one after another in the same processes, sharded or not; each is written down.

A case is a name with any of `strategy` ("auto", "ddp", arguments of ModelParallelStrategy, or as
{"flat": …} those of FSDPStrategy), `trainer` (arguments of the Trainer), `schedule`, `callback`
(further arguments), `optimizer`, `module` ("own" for a LightningModule that shards itself), `model`
(further arguments of the classifier), `drop` (of its dropout), `probe` (with LinearProbe), `cache`
(with FrozenPrefixCache), `ckpt_path`, `saves` (a checkpoint at this step), `last` (with
LastCheckpoint), `then` ("validate" or "predict", from the checkpoint `then_path`), `fails` (its
error is written).
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.strategies import (
    DDPStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    Strategy,
)
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from lit_finetune import FinetuneClassifier
from lit_finetune.callbacks import (
    FreezeUnfreezeCallback,
    FrozenPrefixCache,
    LastCheckpoint,
    LinearProbe,
)
from lit_finetune.datamodules import DigitsDataModule
from lit_finetune.distributed.fsdp2 import full_tensor, reshard
from lit_finetune.modules.fsdp1 import modules_by_name, parameters_by_name
from tests.distributed.flat_strategy import FlatOnCPU, whole_values

SCHEDULE = {0: "head", 1: "layer2", 2: "layer1"}
OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, momentum=0.9, weight_decay=0.01),
    "plain sgd": torch.optim.SGD,
    "adamw": torch.optim.AdamW,
    "default": None,
}

SENDING = [  # the first is the newer name
    name
    for name in ("reduce_scatter_single", "reduce_scatter_tensor")
    if hasattr(distributed, name)
]


class Net(nn.Module):
    """Three stages with batch statistics and dropout; the first is never trained here."""

    def __init__(self, drop: float = 0.1) -> None:
        super().__init__()
        self.stem = self.stage(3, 4, drop)
        self.layer1 = self.stage(4, 4, drop)
        self.layer2 = self.stage(4, 8, drop)
        self.fc = nn.Linear(8, 3)

    def stage(self, width: int, out: int, drop: float) -> nn.Module:
        """A convolution and what follows it."""
        convolution = nn.Conv2d(width, out, 3, stride=2, padding=1, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(out), nn.ReLU(), nn.Dropout(drop))

    def forward(self, x: Tensor) -> Tensor:
        """From pictures to logits."""
        return self.fc(self.layer2(self.layer1(self.stem(x))).mean((2, 3)))


class Own(LightningModule):
    """A user's module, which shards as the user likes: some of one unit trains, some does not."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def configure_model(self) -> None:
        """Two units: the last stage, and all else."""
        if self.device_mesh is not None and not isinstance(next(self.parameters()), DTensor):
            fully_shard(self.net.layer2, mesh=self.device_mesh["data_parallel"])
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss."""
        torch.manual_seed(1000 * self.current_epoch + 10 * batch_idx + self.global_rank)
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """The loss again."""
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("val/loss", loss, sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One group of all."""
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class Forgetful(Own):
    """It leaves out its head."""

    def configure_model(self) -> None:
        """All but the head."""
        if self.device_mesh is not None and not isinstance(next(self.parameters()), DTensor):
            for stage in (self.net.stem, self.net.layer1, self.net.layer2):
                fully_shard(stage, mesh=self.device_mesh["data_parallel"])


class WriteDown(Callback):
    """Keep what this process has at each epoch's end, put together from all shards."""

    def __init__(self, path: str, saves: int | None) -> None:
        self.path = path
        self.saves = saves
        self.epochs: dict[int, dict[str, Any]] = {}
        self.sent = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count what is sent of gradients."""
        self.sends = {name: getattr(distributed, name) for name in SENDING}
        for name, send in self.sends.items():
            setattr(distributed, name, partial(self.count, send))

    def count(self, send: Any, *args: Any, **kwargs: Any) -> Any:
        """Send, and note how many bytes."""
        sent = kwargs["input"] if "input" in kwargs else args[1]
        self.sent += sent.numel() * sent.element_size()
        return send(*args, **kwargs)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Save amid an epoch."""
        if trainer.global_step == self.saves:
            trainer.save_checkpoint(f"{self.path}-mid.ckpt")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note all, and write it to a file."""
        reshard(pl_module)  # the validation has left the root of a user's module as it was gathered
        optimizer = trainer.optimizers[0]
        weights, state = values_in(trainer, pl_module)
        self.epochs[trainer.current_epoch] = {
            "weights": weights,
            "state": state,
            "groups": [(group.get("name"), float(group["lr"])) for group in optimizer.param_groups],
            "trains": [n for n, p in parameters_by_name(pl_module).items() if p.requires_grad],
            "held": [name for name, m in modules_by_name(pl_module) if not m.training],
            "with gradient": [
                n for n, p in parameters_by_name(pl_module).items() if p.grad is not None
            ],
            "here": sum(
                p.to_local().numel() if isinstance(p, DTensor) else p.numel()
                for p in pl_module.parameters()
            ),
            "sizes": [p.numel() for p in Net().parameters()],
            "sent": self.sent,
        }
        self.sent = 0
        torch.save(self.epochs, f"{self.path}-rank{trainer.global_rank}.pt")

    def on_train_end(self, *_: Any) -> None:
        """Count no more."""
        for name, send in self.sends.items():
            setattr(distributed, name, send)


def values_in(
    trainer: Trainer, pl_module: LightningModule
) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """Weights and statistics, and what the optimizer keeps, put together from all processes."""
    if isinstance(trainer.strategy, FSDPStrategy):
        return whole_values(trainer)
    names = {id(parameter): name for name, parameter in pl_module.named_parameters()}
    return {n: full_tensor(value).clone() for n, value in pl_module.state_dict().items()}, {
        names[id(parameter)]: {
            key: full_tensor(value).clone() for key, value in state.items() if value is not None
        }
        for parameter, state in trainer.optimizers[0].state.items()
    }


def strategy_of(case: dict[str, Any]) -> Strategy | str:
    """What the case asks for; by default all parameters are sharded."""
    given = case.get("strategy", {})
    if given == "auto":
        return "auto"
    if given == "ddp":
        return DDPStrategy(find_unused_parameters=True)
    if "flat" in given:
        return FlatOnCPU(**given["flat"])
    sizes = {"data_parallel_size": 2, "tensor_parallel_size": 1}
    return ModelParallelStrategy(**{"save_distributed_checkpoint": False, **sizes, **given})


def module_of(case: dict[str, Any]) -> LightningModule:
    """A classifier, or the user's own module."""
    if module := case.get("module"):
        return {"own": Own, "forgetful": Forgetful}[module]()
    return FinetuneClassifier(
        Net(case.get("drop", 0.1)),
        num_classes=3,
        lr=0.01,
        backbone_lr_ratio=0.5,
        optimizer=OPTIMIZERS[case.get("optimizer", "sgd")],
        **case.get("model", {}),
    )


def train(folder: Path, name: str, case: dict[str, Any]) -> None:
    """One case."""
    seed_everything(0, verbose=False)
    model = module_of(case)
    callback = FreezeUnfreezeCallback(case.get("schedule", SCHEDULE), **case.get("callback", {}))
    options = {
        "max_epochs": 3,
        "limit_train_batches": 3,
        "limit_val_batches": 1,
        "accelerator": "cpu",
        "devices": 2,
        "strategy": strategy_of(case),
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": [
            *([LinearProbe()] if case.get("probe") else []),
            callback,
            *([FrozenPrefixCache()] if case.get("cache") else []),
            WriteDown(str(folder / name), case.get("saves")),
        ],
    }
    if case.get("last"):
        options["enable_checkpointing"] = True
        options["callbacks"].append(LastCheckpoint(folder / name))
    trainer = Trainer(**{**options, **case.get("trainer", {})})
    data = DigitsDataModule(digits=[0, 1, 2], batch_size=8, image_size=16, num_workers=0)
    ckpt_path = str(folder / case["ckpt_path"]) if "ckpt_path" in case else None
    try:
        trainer.fit(model, data, ckpt_path=ckpt_path)
        if then := case.get("then"):
            getattr(trainer, then)(model, data, ckpt_path=str(folder / case["then_path"]))
    except ValueError as error:
        if not case.get("fails"):
            raise
        (folder / f"{name}.txt").write_text(str(error))


def main(folder: Path, cases: dict[str, dict[str, Any]]) -> None:
    """All cases."""
    for name, case in cases.items():
        train(folder, name, case)

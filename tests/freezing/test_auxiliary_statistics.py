"""Of a network that does not train only batch statistics are restored, and only if it is fixed."""

import copy
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader, TensorDataset

from lit_finetune import FinetuneClassifier
from lit_finetune.callbacks import FreezeUnfreezeCallback

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Net(nn.Sequential):
    def __init__(self) -> None:
        conv, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        pool = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        super().__init__(conv, norm, pool, nn.Linear(4, 3))


class Queue(nn.Module):
    """A fixed teacher with a queue of its outputs."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("queue", torch.zeros(6, 3))
        self.count = 0

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.net(images)
        rows = (torch.arange(len(outputs)) + self.count) % 6
        self.queue[rows] = outputs
        self.count += len(outputs)
        return outputs


class Distilled(LightningModule):
    """A student that learns from a teacher, which a function may update after each step."""

    def __init__(self, teacher: nn.Module, follow: Any = None, hook: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone, self.teacher = Net(), teacher.requires_grad_(False)
        if follow:
            setattr(self, hook, lambda *_: follow(self))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        with torch.no_grad():
            target = self.teacher(batch[0])
        return F.mse_loss(self.backbone(batch[0]), target + 1)

    def configure_optimizers(self) -> Optimizer:
        return SGD(self.backbone.parameters(), lr=0.1)


class DistilledClassifier(FinetuneClassifier):
    def __init__(self, teacher: nn.Module, follow: Any = None, hook: str = "") -> None:
        torch.manual_seed(0)
        super().__init__(Net(), num_classes=3, lr=0.1)
        self.teacher = teacher.requires_grad_(False)
        if follow:
            setattr(self, hook, lambda *_: follow(self))

    training_step = Distilled.training_step  # type: ignore[assignment]


@torch.no_grad()
def by_data(module: Any) -> None:
    for mean, new in zip(module.teacher.parameters(), module.backbone.parameters(), strict=True):
        mean.data.mul_(0.5).add_(new.data, alpha=0.5)


def late_by_data(module: Any) -> None:
    if module.global_step >= 4:
        by_data(module)


def network() -> nn.Module:
    torch.manual_seed(1)
    return Net()


def fit(module: LightningModule, *, schedule: str | None = "full", **options: Any) -> None:
    images = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(2)) + 1
    callbacks = [FreezeUnfreezeCallback(schedule)] if schedule else []
    data = DataLoader(TensorDataset(images, torch.arange(32) % 3), batch_size=2)
    Trainer(**{"max_epochs": 1, **QUIET, **options}, callbacks=callbacks).fit(module, data)


@pytest.mark.parametrize(
    ("kind", "schedule"), [(Distilled, "full"), (DistilledClassifier, None)], ids=str
)
@pytest.mark.parametrize("trains", [True, False])
def test_a_teacher_keeps_its_queue_and_a_norm_layer_its_statistics(
    kind: Any, schedule: str | None, trains: bool
) -> None:
    teacher = Queue(network().train(trains))
    before = copy.deepcopy(teacher.net.state_dict())
    fit(kind(teacher), schedule=schedule)
    assert teacher.queue.any(dim=1).all()
    assert all(torch.equal(before[name], v) for name, v in teacher.net.state_dict().items())


@pytest.mark.parametrize(
    ("kind", "schedule"), [(Distilled, "full"), (DistilledClassifier, None)], ids=str
)
@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_before_zero_grad"])
@pytest.mark.parametrize("accumulated", [1, 4])
def test_a_mean_teacher_keeps_all_its_statistics(
    kind: Any, schedule: str | None, hook: str, accumulated: int
) -> None:
    def follow(module: Any) -> None:
        if (
            hook != "on_train_batch_end"
            or (module.trainer.fit_loop.batch_idx + 1) % accumulated == 0
        ):
            by_data(module)

    module, alone = (Distilled(network(), follow, hook) for _ in range(2))
    if kind is DistilledClassifier:
        module = kind(network(), follow, hook)
    fit(module, schedule=schedule, accumulate_grad_batches=accumulated)
    fit(alone, schedule=None, accumulate_grad_batches=accumulated)
    norm, expected = module.teacher[1], alone.teacher[1]
    assert norm.num_batches_tracked == expected.num_batches_tracked == 16
    if kind is Distilled:
        assert torch.equal(norm.running_mean, expected.running_mean)


def test_a_teacher_that_follows_late_is_left_alone_from_then_on() -> None:
    module = Distilled(network(), late_by_data, "on_train_batch_end")
    fit(module)
    assert module.teacher[1].num_batches_tracked == 16 - 4


@pytest.mark.parametrize("follow", [None, by_data])
def test_a_checkpoint_of_the_first_step_changes_nothing(follow: Any, tmp_path: Any) -> None:
    class Saved(Distilled):
        def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            super().optimizer_step(*args, **kwargs)
            if args[1] == 0:
                self.trainer.save_checkpoint(tmp_path / "first.ckpt")

    module = Saved(network(), follow, "on_train_batch_end")
    fit(module, max_steps=3)
    assert module.teacher[1].num_batches_tracked == (3 if follow else 0)
    saved = torch.load(tmp_path / "first.ckpt", weights_only=True)["state_dict"]
    assert saved["teacher.1.num_batches_tracked"] == 0

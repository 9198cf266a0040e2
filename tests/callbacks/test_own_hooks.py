"""What a module's own hooks do with layers and `requires_grad`, beside a schedule."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader, TensorDataset

from lit_finetune.callbacks import FreezeUnfreezeCallback

SCHEDULE = {0: "layer2", 1: "head", 2: "all"}
PHASES = (("layer2",), ("layer2", "fc"), ("layer2", "fc", "layer1", "stem"))
HOOKS = (
    "setup",
    "configure_model",
    "configure_optimizers",
    "on_fit_start",
    "on_train_start",
    "on_train_epoch_start",
    "on_train_batch_start",
)


class Net(nn.Module):
    """Three stages, of which each keeps statistics, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh())
        self.layer1 = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh())
        self.layer2 = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh())
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer2(self.layer1(self.stem(x))))


def new_net() -> Net:
    torch.manual_seed(1)
    return Net()


class ByHand(LightningModule):
    """It does something to its network in one of its hooks."""

    def __init__(self, act: Callable[["ByHand"], None], hook: str = "") -> None:
        super().__init__()
        self.net: nn.Module = new_net()
        self.act, self.hook = act, hook

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Optimizer:
        if self.hook == "configure_optimizers":
            self.act(self)
        return SGD(self.parameters(), lr=0.1)


def in_hook(name: str) -> Callable[..., None]:
    def hook(self: ByHand, *_: Any, **__: Any) -> None:
        if self.hook == name:
            self.act(self)

    return hook


for each in HOOKS:
    if each != "configure_optimizers":
        setattr(ByHand, each, in_hook(each))


class AnotherCallback(Callback):
    """It does it in the hook of a callback."""

    def __init__(self, act: Callable[[Any], None], hook: str) -> None:
        def hooked(trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
            act(pl_module)

        setattr(self, hook, hooked)


class Steps(Callback):
    steps = 0

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps += 1


def unfreeze_all(module: ByHand) -> None:
    module.net.requires_grad_(True)


def freeze_all_but_the_head(module: ByHand) -> None:
    module.net.requires_grad_(False)
    module.net.fc.requires_grad_(True)


def train_mode(module: ByHand) -> None:
    module.train()


def exchange(module: ByHand) -> None:
    module.net = new_net()


def add_a_layer(module: ByHand) -> None:
    module.net.layer2.append(nn.Linear(4, 4, bias=False))


def batches() -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 5, generator=generator), torch.arange(12) % 3
    return [[x[i : i + 4], y[i : i + 4]] for i in (0, 4, 8)]


def by_plain_torch() -> dict[str, Tensor]:
    """The schedule in a loop of a few lines: three epochs, what is frozen in eval mode."""
    net = new_net()
    for names in PHASES:
        for name, child in net.named_children():
            child.requires_grad_(name in names).train(name in names)
        optimizer = SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
        for x, y in batches():
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
    return net.state_dict()


def fit(module: LightningModule, *callbacks: Callback, schedule: Any = SCHEDULE) -> Trainer:
    data = TensorDataset(*(torch.cat(part) for part in zip(*batches(), strict=True)))
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )
    callback = FreezeUnfreezeCallback(schedule)
    at = next((i for i, c in enumerate(callbacks) if isinstance(c, Steps)), 0)
    trainer.callbacks.insert(at, callback)
    trainer.fit(module, DataLoader(data, batch_size=4))
    return trainer


def assert_as_by_plain_torch(net: nn.Module) -> None:
    found, expected = net.state_dict(), by_plain_torch()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


@pytest.mark.parametrize("act", [unfreeze_all, freeze_all_but_the_head, train_mode])
@pytest.mark.parametrize("hook", HOOKS)
def test_the_schedule_is_followed_whatever_a_hook_of_the_module_sets(
    hook: str, act: Callable[[ByHand], None]
) -> None:
    module = ByHand(act, hook)
    fit(module)
    assert_as_by_plain_torch(module.net)


@pytest.mark.parametrize("act", [unfreeze_all, train_mode])
@pytest.mark.parametrize(
    ("hook", "is_first"),
    [
        ("setup", False),
        ("on_fit_start", True),
        ("on_fit_start", False),
        ("on_train_start", False),
        ("on_train_epoch_start", False),
        ("on_train_batch_start", False),
    ],
)
def test_the_schedule_is_followed_whatever_another_callback_sets(
    hook: str, is_first: bool, act: Callable[[ByHand], None]
) -> None:
    module, other = ByHand(act), AnotherCallback(act, hook)
    fit(module, *([other, Steps()] if is_first else [Steps(), other]))
    assert_as_by_plain_torch(module.net)


@pytest.mark.parametrize("act", [exchange, add_a_layer])
@pytest.mark.parametrize("hook", HOOKS)
def test_layers_that_a_hook_exchanges_are_planned_with_or_refused(
    hook: str, act: Callable[[ByHand], None]
) -> None:
    module, steps = ByHand(act, hook), Steps()
    if hook not in ("setup", "configure_model"):
        with pytest.raises(ValueError, match=r"changed layers after|exchanged or added during"):
            fit(module, steps)
        assert steps.steps == 0
        return
    fit(module, steps)
    if act is exchange:
        assert_as_by_plain_torch(module.net)


def test_a_deep_copy_made_in_setup_is_what_trains() -> None:
    def act(module: ByHand) -> None:
        module.net = copy.deepcopy(module.net)

    module = ByHand(act, "setup")
    fit(module)
    assert_as_by_plain_torch(module.net)


def test_a_module_without_layers_is_pointed_to_the_hooks_that_may_build_them() -> None:
    class Empty(ByHand):
        def __init__(self) -> None:
            super().__init__(unfreeze_all)
            self.net = nn.Identity()

    with pytest.raises(ValueError, match=r"no parameters.*`configure_model`"):
        fit(Empty())


def test_layers_that_are_built_in_configure_model_anew_each_time_train() -> None:
    module = ByHand(exchange, "configure_model")
    fit(module)
    assert_as_by_plain_torch(module.net)


class FreezesInStep(ByHand):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.net.layer2.requires_grad_(False)
        return super().training_step(batch, batch_idx)


class TrainsInStep(ByHand):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.train()
        return super().training_step(batch, batch_idx)


class CutsOff(ByHand):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]).detach(), batch[1])


@pytest.mark.parametrize(
    ("kind", "schedule", "words"),
    [
        (FreezesInStep, {0: ["layer2", "head"]}, "requires_grad=False on what the schedule trains"),
        (TrainsInStep, {0: "layer2"}, "frozen blocks into training mode"),
        (CutsOff, {0: "layer2"}, "The loss does not depend on anything that trains"),
    ],
)
def test_a_step_that_goes_against_the_schedule_is_refused_before_it_is_made(
    kind: type[ByHand], schedule: Any, words: str
) -> None:
    module, steps = kind(unfreeze_all), Steps()
    with pytest.raises(ValueError, match=words):
        fit(module, steps, schedule=schedule)
    assert steps.steps == 0


def test_a_step_that_looks_on_in_eval_mode_and_goes_back_to_train_mode_is_none_of_ours() -> None:
    class Looks(ByHand):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            self.train()
            return loss

    module = Looks(unfreeze_all)
    fit(module)
    assert_as_by_plain_torch(module.net)

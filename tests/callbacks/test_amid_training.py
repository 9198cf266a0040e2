"""What the module's own hooks do with layers amid the training, and what gets no gradient."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader, TensorDataset

from lit_finetune.callbacks import FreezeUnfreezeCallback


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh())
        self.layer1 = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.2))
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer1(self.stem(x)))


class Acts(LightningModule):
    """It does something to its network in a hook of epoch 1."""

    def __init__(self, act: Callable[[Any], Any] = lambda module: None, hook: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = Net()
        self.act, self.hook, self.has_acted = act, hook, False
        self.steps = 0

    def do(self, hook: str) -> None:
        if hook == self.hook and self.current_epoch == 1 and not self.has_acted:
            self.has_acted = True
            self.act(self)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.do("training_step")
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps += 1
        self.do("on_train_batch_end")

    def on_train_epoch_start(self) -> None:
        self.do("on_train_epoch_start")

    def on_train_batch_start(self, *_: Any) -> None:
        self.do("on_train_batch_start")

    def on_after_backward(self) -> None:
        self.do("on_after_backward")

    def on_validation_end(self) -> None:
        self.do("on_validation_end")

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> Optimizer:
        return SGD(self.net.parameters(), lr=0.1)


def fit(module: LightningModule, schedule: Any, *, epochs: int = 3, **options: Any) -> Trainer:
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(12, 5, generator=generator), torch.arange(12) % 3)
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[FreezeUnfreezeCallback(schedule)],
        **options,
    )
    torch.manual_seed(1)
    trainer.fit(module, DataLoader(data, batch_size=4), DataLoader(data, batch_size=6))
    return trainer


def new_head(module: Any) -> None:
    module.net.fc = nn.Linear(4, 3)


def new_frozen_layer(module: Any) -> None:
    module.net.stem[0] = nn.Linear(5, 4).requires_grad_(False)


def new_parameter(module: Any) -> None:
    module.net.fc.bias = nn.Parameter(torch.zeros(3))


def another_parameter(module: Any) -> None:
    module.scale = nn.Parameter(torch.ones(3))


def another_layer(module: Any) -> None:
    module.net.layer1.append(nn.Linear(4, 4))


def without_a_layer(module: Any) -> None:
    module.net.layer1[0] = nn.Identity()


def weight_norm(module: Any) -> None:
    parametrizations.weight_norm(module.net.fc)


@pytest.mark.parametrize(
    ("hook", "step", "act", "name"),
    [
        ("on_train_epoch_start", 3, new_head, r"net\.fc\.weight, net\.fc\.bias"),
        ("on_train_epoch_start", 3, new_frozen_layer, r"net\.stem\.0\.weight"),
        ("on_train_epoch_start", 3, weight_norm, r"net\.fc\.weight"),
        ("on_train_batch_start", 3, new_parameter, r"net\.fc\.bias"),
        ("on_train_batch_start", 3, another_layer, r"net\.layer1\.3\.weight"),
        ("training_step", 3, another_parameter, r"scale"),
        ("training_step", 3, new_head, r"net\.fc\.weight"),
        ("on_after_backward", 3, without_a_layer, r"net\.layer1\.0\.weight"),
        ("on_train_batch_end", 4, new_head, r"net\.fc\.weight"),
        ("on_validation_end", 6, another_parameter, r"scale"),
        ("on_validation_end", 6, new_head, r"net\.fc\.weight"),
    ],
)
def test_layers_that_are_exchanged_or_added_amid_the_training_are_refused_before_the_next_step(
    hook: str, step: int, act: Callable[[Any], None], name: str
) -> None:
    module = Acts(act, hook)
    with pytest.raises(
        ValueError, match=rf"exchanged or added during.*before step {step} .*{name}"
    ):
        fit(module, {0: "fc", 2: "all"})
    assert module.steps == step


def copy_of_itself(module: Any) -> None:
    module.teacher = copy.deepcopy(module.net).requires_grad_(False).eval()


def another_activation(module: Any) -> None:
    module.net.stem[2] = nn.Tanh()


def mask(module: Any) -> None:
    prune.custom_from_mask(module.net.fc, "weight", torch.ones(3, 4))


def load(module: Any) -> None:
    module.net.load_state_dict(copy.deepcopy(module.net.state_dict()))


@pytest.mark.parametrize(
    ("hook", "act"),
    [
        ("on_train_epoch_start", copy_of_itself),
        ("on_train_batch_end", another_activation),
        ("training_step", mask),
        ("on_train_epoch_start", mask),
        ("on_train_batch_end", load),
    ],
)
def test_what_leaves_the_parameters_that_train_in_their_place_changes_nothing(
    hook: str, act: Callable[[Any], None]
) -> None:
    module, other = Acts(act, hook), Acts()
    fit(module, {0: "fc", 2: "all"})
    fit(other, {0: "fc", 2: "all"})
    assert module.has_acted
    found, expected = module.net.state_dict(), other.net.state_dict()
    for name, value in expected.items():
        key = name if name in found else f"{name}_orig"
        assert torch.equal(found[key], value)


def test_a_dropout_that_comes_into_a_frozen_block_is_held_in_eval_mode() -> None:
    def act(module: Any) -> None:
        module.net.layer1[2] = nn.Dropout(0.9)

    module, other = Acts(act, "on_train_epoch_start"), Acts()
    fit(module, {0: "fc"})
    fit(other, {0: "fc"})
    assert torch.equal(module.net.fc.weight, other.net.fc.weight)


class CutsOff(Acts):
    """The stem is run without a gradient, or only now and then."""

    def __init__(self, every: int) -> None:
        super().__init__()
        self.every = every

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        features = self.net.stem(batch[0])
        if (self.steps + 1) % self.every:
            features = features.detach()
        return nn.functional.cross_entropy(self.net.fc(self.net.layer1(features)), batch[1])


def silent(caught: Any) -> list[str]:
    return [str(each.message) for each in caught if "No gradient" in str(each.message)]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_block_that_no_gradient_reaches_is_told_once_by_its_name(accumulate: int) -> None:
    schedule = {0: "fc", 1: "layer1", 2: "all"}
    with pytest.warns(UserWarning, match="No gradient") as caught:
        fit(CutsOff(10**6), schedule, epochs=7, accumulate_grad_batches=accumulate)
    (line,) = silent(caught)
    assert "block stem (net.stem.0.weight and 3 more) in 8 steps" in line


def test_a_training_that_ends_before_says_so_at_its_end() -> None:
    with pytest.warns(UserWarning, match="No gradient.*stem.* in 3 steps"):
        fit(CutsOff(10**6), "full", epochs=1)


def test_a_block_that_is_left_out_now_and_then_is_not_told_of() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(CutsOff(4), {0: "fc", 1: "all"}, epochs=6)
    assert silent(caught) == []

"""Optimizers and layers of a user's own module beside a schedule: followed, or refused at once."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.ao.quantization import get_default_qat_qconfig, prepare_qat
from torch.optim import LBFGS, SGD, Adafactor, AdamW, Muon
from torch.utils.data import DataLoader, TensorDataset

from lit_finetune.callbacks import FreezeUnfreezeCallback

SCHEDULE = {0: "fc", 1: "layer1", 2: "all"}
FOLLOWED = [{"fc"}, {"fc", "layer1"}, {"fc", "layer1", "stem"}]


class Own(LightningModule):
    """Three layers, and whatever optimizers it is given."""

    def __init__(self, optimizers: Callable[[Any], Any], *, manual: bool = False) -> None:
        super().__init__()
        layers = {"stem": nn.Linear(5, 4), "layer1": nn.Linear(4, 4), "fc": nn.Linear(4, 3)}
        self.net = nn.Sequential()
        for name, layer in layers.items():
            self.net.add_module(name, layer)
        self.make_optimizers = optimizers
        self.automatic_optimization = not manual

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        if not self.automatic_optimization:
            found = self.optimizers()
            for optimizer in found if isinstance(found, list) else [found]:
                optimizer.zero_grad()
            self.manual_backward(loss)
            for optimizer in found if isinstance(found, list) else [found]:
                optimizer.step()
        return loss

    def configure_optimizers(self) -> Any:
        return self.make_optimizers(self)


def all_with_sgd(module: Own) -> Any:
    return SGD(module.parameters(), lr=0.1)


class Moved(Callback):
    """Which layers have moved in each epoch."""

    def __init__(self) -> None:
        self.epochs: list[set[str]] = []
        self.steps = 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.before = copy.deepcopy(dict(pl_module.net.named_parameters()))

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps += 1

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        named = pl_module.net.named_parameters()
        moved = {name for name, p in named if not torch.equal(p, self.before[name])}
        self.epochs.append({name.split(".")[0] for name in moved})


def fit(module: LightningModule, moved: Moved, schedule: Any = SCHEDULE, **options: Any) -> None:
    data = TensorDataset(torch.randn(8, 5), torch.arange(8) % 3)
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[FreezeUnfreezeCallback(schedule), moved],
        **options,
    )
    trainer.fit(module, DataLoader(data, batch_size=4))


def matrices(module: Own) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.ndim == 2]


def vectors(module: Own) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.ndim < 2]


FOLLOWING: dict[str, tuple[Callable[[Any], Any], bool]] = {
    "of the head alone": (lambda m: SGD(m.net.fc.parameters(), lr=0.1), False),
    "of the stem alone": (lambda m: SGD(m.net.stem.parameters(), lr=0.1), False),
    "named": (lambda m: SGD(m.named_parameters(), lr=0.1), False),
    "foreach": (lambda m: AdamW(m.parameters(), lr=0.1, foreach=True), False),
    "fused": (lambda m: AdamW(m.parameters(), lr=0.1, fused=True), False),
    "a tensor as rate": (lambda m: AdamW(m.parameters(), torch.tensor(0.1), foreach=False), False),
    "factored": (lambda m: Adafactor(m.parameters(), lr=0.1), False),
    "of another module's parameters": (
        lambda m: SGD(copy.deepcopy(m.net).parameters(), lr=0.1),
        False,
    ),
    "two of the same": (
        lambda m: [SGD(m.parameters(), lr=0.1), AdamW(m.parameters(), lr=0.1)],
        True,
    ),
    "two that leave a layer out": (
        lambda m: [SGD(m.net.fc.parameters(), lr=0.1), SGD(m.net.stem.parameters(), lr=0.1)],
        True,
    ),
    "Muon and AdamW": (lambda m: [Muon(matrices(m), lr=0.1), AdamW(vectors(m), lr=0.1)], True),
}


@pytest.mark.parametrize("name", FOLLOWING)
def test_the_schedule_is_followed_under_any_optimizer(name: str) -> None:
    optimizers, manual = FOLLOWING[name]
    moved = Moved()
    fit(Own(optimizers, manual=manual), moved)
    assert moved.epochs == FOLLOWED


@pytest.mark.parametrize(
    ("optimizers", "words"),
    [
        (lambda m: None, "returns no optimizer"),
        (lambda m: [], "returns no optimizer"),
        (lambda m: LBFGS(m.parameters()), "LBFGS supports one parameter group"),
        (lambda m: Muon(matrices(m), lr=0.1), "'net.fc.bias', which no optimizer holds, and Muon"),
    ],
    ids=["none", "empty", "lbfgs", "muon"],
)
def test_an_optimizer_that_cannot_follow_is_refused_before_the_first_step(
    optimizers: Callable[[Any], Any], words: str
) -> None:
    moved = Moved()
    with pytest.raises(ValueError, match=words):
        fit(Own(optimizers), moved)
    assert moved.steps == 0


@pytest.mark.parametrize(("schedule", "trained"), [("head_only", {"fc"}), ("full", FOLLOWED[-1])])
def test_lbfgs_trains_where_nothing_joins(schedule: str, trained: set[str]) -> None:
    moved = Moved()
    fit(Own(lambda m: LBFGS(m.parameters())), moved, schedule)
    assert moved.epochs == [trained] * 3


class FreezesInSetup(Own):
    def setup(self, stage: str) -> None:
        self.freeze()


class FreezesLate(Own):
    def on_fit_start(self) -> None:
        self.freeze()


class NewHead(Own):
    def configure_model(self) -> None:
        if self.net.fc.out_features == 3:
            self.net.fc = nn.Linear(4, 7)


class LoadsLate(Own):
    def on_fit_start(self) -> None:
        self.net.load_state_dict({k: v + 1 for k, v in self.net.state_dict().items()})


class ForQuantisation(Own):
    def setup(self, stage: str) -> None:
        self.net.qconfig = get_default_qat_qconfig("x86")
        prepare_qat(self.net.train(), inplace=True)


class Lazy(Own):
    def __init__(self, optimizers: Callable[[Any], Any]) -> None:
        super().__init__(optimizers)
        self.net.stem = nn.LazyLinear(4)


class LazyRunInSetup(Lazy):
    def setup(self, stage: str) -> None:
        self.net(torch.zeros(2, 5))


class TiedToTheHead(Own):
    def __init__(self, optimizers: Callable[[Any], Any]) -> None:
        super().__init__(optimizers)
        self.net.fc.twin = nn.Linear(4, 3)
        self.net.fc.twin.weight = self.net.fc.weight


class SkipsSteps(Own):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        return None if batch_idx == 0 else super().training_step(batch, batch_idx)


@pytest.mark.filterwarnings("ignore:.*deprecated.*", "ignore:.*reduce_range.*")
@pytest.mark.parametrize(
    "kind",
    [
        FreezesInSetup,
        FreezesLate,
        NewHead,
        LoadsLate,
        ForQuantisation,
        LazyRunInSetup,
        TiedToTheHead,
        SkipsSteps,
    ],
)
def test_the_schedule_is_followed_whatever_a_module_does_before(kind: type[Own]) -> None:
    moved = Moved()
    fit(kind(all_with_sgd), moved)
    assert moved.epochs == FOLLOWED


def test_lazy_layers_that_were_never_run_are_refused_by_their_names() -> None:
    with pytest.raises(ValueError, match=r"have no sizes yet: net\.stem\.weight.*`setup`"):
        fit(Lazy(all_with_sgd), Moved())


def test_weights_that_are_exchanged_after_the_plan_are_refused() -> None:
    class Assigns(Own):
        def on_fit_start(self) -> None:
            state = {k: v.clone() for k, v in self.net.state_dict().items()}
            self.net.load_state_dict(state, assign=True)

    moved = Moved()
    with pytest.raises(ValueError, match="changed layers after the schedule was planned"):
        fit(Assigns(all_with_sgd), moved)
    assert moved.steps == 0

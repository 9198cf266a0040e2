"""Parameters that were fixed before any schedule came stay fixed, unless they alone are named."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.tuner import Tuner
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader, TensorDataset

from lit_finetune import FinetuneClassifier
from lit_finetune.callbacks import FreezeUnfreezeCallback


class Net(nn.Module):
    """A stem with a fixed code, as that of MoCo-v3's transformers, two layers and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.code = nn.Parameter(torch.randn(4), requires_grad=False)
        self.stem = nn.Linear(5, 4)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(2))
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x) + self.code
        for layer in self.layers:
            x = layer(x)
        return self.fc(x)


class Plain(LightningModule):
    """A user's own module, whose optimizer holds everything."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.lr = 0.1

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Optimizer:
        return SGD(self.net.parameters(), lr=self.lr, momentum=0.9, weight_decay=0.1)


class Moved(Callback):
    """What has moved in each epoch."""

    def __init__(self) -> None:
        self.epochs: list[set[str]] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.before = {name: p.detach().clone() for name, p in pl_module.named_parameters()}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        named = pl_module.named_parameters()
        moved = [name for name, p in named if not torch.equal(p, self.before[name])]
        self.epochs.append({short(name) for name in moved})


def short(name: str) -> str:
    parts = name.split(".")[1:]
    return ".".join(parts[:2]) if parts[0] == "layers" else parts[0]


def loader() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(8, 5, generator=generator), torch.arange(8) % 3)
    return DataLoader(data, batch_size=4)


def make_trainer(schedule: Any, *callbacks: Callback, **options: Any) -> Trainer:
    settings = {
        "max_epochs": 3,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    callback = FreezeUnfreezeCallback(schedule)
    return Trainer(callbacks=[callback, *callbacks], **{**settings, **options})


def moved_in(schedule: Any, model: LightningModule | None = None, **options: Any) -> list[set[str]]:
    moved = Moved()
    make_trainer(schedule, moved, **options).fit(model or Plain(Net()), loader())
    return moved.epochs


HEAD, LAYERS = {"fc"}, {"layers.0", "layers.1"}
REST = {"fc", "stem", *LAYERS}


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({0: "head", 1: "all"}, [HEAD, REST, REST]),
        ({0: "all"}, [REST] * 3),
        ("full", [REST] * 3),
        ({0: "head", 1: "stem", 2: "all"}, [HEAD, {"fc", "stem"}, REST]),
        ({0: "head", 1: 0}, [HEAD, {"fc", "stem"}, {"fc", "stem"}]),
        ({0: "head", 1: "code"}, [HEAD, {"fc", "code"}, {"fc", "code"}]),
        ({0: "all", 2: "net.code"}, [REST, REST, {*REST, "code"}]),
    ],
)
def test_it_trains_only_where_it_alone_is_selected(schedule: Any, expected: list[set[str]]) -> None:
    assert moved_in(schedule) == expected


def test_the_classifier_knows_it_as_well() -> None:
    model = FinetuneClassifier(Net(), num_classes=3, lr=0.1, lr_scheduler="constant")

    assert moved_in({0: "head", 1: "all"}, model) == [HEAD, REST, REST]


def test_it_is_told_once_where_it_stays_and_not_where_it_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level("INFO"):
        moved_in({0: "head", 1: "all"})
        moved_in({0: "head", 1: "code", 2: "all"})

    told = [r.getMessage() for r in caplog.records if r.getMessage().startswith("Left frozen")]
    assert len(told) == 1
    assert "1 parameters, net.code" in told[0]


def fit_twice(schedule: Any, model: Plain) -> list[set[str]]:
    """Two epochs, and another one of the same Trainer."""
    moved = Moved()
    trainer = make_trainer(schedule, moved, max_epochs=2)
    trainer.fit(model, loader())
    trainer.fit_loop.max_epochs = 3
    trainer.fit(model, loader())
    return moved.epochs


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({0: "head", 1: "all"}, [HEAD, REST, REST]),
        ({0: "all", 1: "code"}, [REST, {*REST, "code"}, {*REST, "code"}]),
        ("head_only", [HEAD] * 3),
    ],
)
def test_a_second_fit_takes_nothing_for_fixed_that_a_schedule_has_frozen(
    schedule: Any, expected: list[set[str]]
) -> None:
    assert fit_twice(schedule, Plain(Net())) == expected


@pytest.mark.parametrize("carry", ["the module", "a copy", "the network alone"])
def test_another_schedule_thaws_what_the_last_one_left_frozen(carry: str) -> None:
    first = Plain(Net())
    moved_in("head_only", first)
    again = {
        "the module": lambda: first,
        "a copy": lambda: copy.deepcopy(first),
        "the network alone": lambda: Plain(first.net),
    }[carry]()

    assert moved_in({0: "all"}, again) == [REST] * 3


def test_a_trial_of_the_tuner_leaves_no_note_of_what_it_froze() -> None:
    model = Plain(Net())
    trainer = make_trainer({0: "head", 1: "all"})
    tuner = Tuner(trainer)
    tuner.lr_find(model, loader(), num_training=4, early_stop_threshold=None, update_attr=False)
    model.net.stem.requires_grad_(False)  # by hand, after the trial

    assert moved_in({0: "head", 1: "all"}, model) == [HEAD, HEAD | LAYERS, HEAD | LAYERS]


def test_a_resumed_run_leaves_the_same_fixed(tmp_path: Path) -> None:
    class Save(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}.ckpt")

    def model() -> Plain:
        torch.manual_seed(0)
        return Plain(Net())

    schedule = {0: "head", 1: "all"}
    whole = model()
    make_trainer(schedule, Save()).fit(whole, loader())
    for epoch in (0, 1):
        resumed = model()
        path = tmp_path / f"{epoch}.ckpt"
        make_trainer(schedule).fit(resumed, loader(), ckpt_path=path, weights_only=True)
        pairs = zip(whole.parameters(), resumed.parameters(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


def test_a_backbone_that_was_frozen_whole_by_hand_is_left_to_the_schedule() -> None:
    net = Net().requires_grad_(False)
    net.fc.requires_grad_(True)
    expected = [HEAD, {"fc", "layers.1"}, {*REST, "code"}]

    assert moved_in({0: "head", 1: "layers.1", 2: "all"}, Plain(net)) == expected
    net.requires_grad_(False)
    net.fc.requires_grad_(True)
    assert fit_twice({0: "head", 1: "all"}, Plain(net))[1:] == [{*REST, "code"}] * 2


def test_what_was_fixed_by_hand_in_part_stays_so_and_all_that_adds_nothing_is_refused() -> None:
    net = Net()
    net.stem.requires_grad_(False)
    net.layers[0].requires_grad_(False)
    assert moved_in({0: "head", 1: "all"}, Plain(net))[1] == {"fc", "layers.1"}

    with pytest.raises(
        ValueError, match=r"'all' adds nothing: .* requires_grad=False before the run"
    ):
        moved_in({0: "head", 1: "layers.1", 2: "all"}, Plain(net))


def test_gradual_has_no_phase_for_a_block_of_nothing_but_fixed_parameters() -> None:
    net = Net()
    net.stem.requires_grad_(False)

    assert moved_in("gradual", Plain(net)) == [HEAD, {"fc", "layers.1"}, HEAD | LAYERS]


def test_fixed_norms_stay_fixed_with_train_bn() -> None:
    net = Net()
    net.layers[0].append(nn.LayerNorm(4).requires_grad_(False))
    net.layers[1].append(nn.LayerNorm(4))
    moved = Moved()
    trainer = make_trainer({0: "head"}, moved)
    trainer.callbacks[0] = FreezeUnfreezeCallback({0: "head"}, train_bn=True)
    trainer.fit(Plain(net), loader())

    assert moved.epochs == [{"fc", "layers.1"}] * 3

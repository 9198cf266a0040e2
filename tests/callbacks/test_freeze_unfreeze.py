"""What trains is what the schedule says, and everything else stands still."""

import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, TensorDataset

from lit_finetune import FinetuneClassifier
from lit_finetune.callbacks import FreezeUnfreezeCallback


class Net(nn.Module):
    """Two stages with batch statistics and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False))
        self.layer1 = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.layer2 = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5))
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer2(self.layer1(self.stem(x))).mean((2, 3)))


class Plain(LightningModule):
    """A user's own module, which knows nothing of us."""

    def __init__(self, make_optimizer: Callable[[nn.Module], Optimizer] | None = None) -> None:
        super().__init__()
        self.net = Net()
        self.make_optimizer = make_optimizer or (lambda net: SGD(net.parameters(), lr=0.1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.net(batch[0])

    def configure_optimizers(self) -> Optimizer:
        return self.make_optimizer(self.net)


class Watch(Callback):
    """What moved, what was in train mode and what the groups were, by epoch."""

    def __init__(self) -> None:
        self.moved: list[set[str]] = []
        self.training: list[set[str]] = []
        self.groups: list[dict[str, float]] = []
        self._before: dict[str, Tensor] = {}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._before = {name: value.clone() for name, value in pl_module.state_dict().items()}
        self.training.append(set())

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        network = next(pl_module.children())
        leaves = [(n, m) for n, m in network.named_modules() if not list(m.children())]
        self.training[-1] |= {name for name, module in leaves if module.training}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        now = pl_module.state_dict()
        changed = {name for name in now if not torch.equal(now[name], self._before[name])}
        self.moved.append({name.split(".", 1)[1] for name in changed})
        groups = trainer.optimizers[0].param_groups
        self.groups.append({str(g.get("name")): g["lr"] for g in groups})


def loader() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(12, 3, 10, 10, generator=generator)
    return DataLoader(TensorDataset(images, torch.arange(12) % 3), batch_size=4)


def fit(
    model: LightningModule, *callbacks: Callback, max_epochs: int = 3, **options: Any
) -> Trainer:
    trainer = Trainer(
        max_epochs=max_epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **options,
    )
    trainer.fit(model, loader(), loader())
    return trainer


def classifier(**options: Any) -> FinetuneClassifier:
    return FinetuneClassifier(Net(), num_classes=3, lr=0.1, **options)


def tops(names: Iterable[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


MODELS = {"classifier": classifier, "a user's own": Plain}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_only_what_is_scheduled_moves_weights_and_statistics(
    make: Callable[[], LightningModule],
) -> None:
    watch = Watch()
    fit(make(), FreezeUnfreezeCallback({0: "head", 1: "layer2", 2: "layer1"}), watch)

    assert [tops(moved) for moved in watch.moved] == [
        {"fc"},
        {"fc", "layer2"},
        {"fc", "layer2", "layer1"},
    ]


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_frozen_modules_stay_in_eval_mode_through_training_and_validation(
    make: Callable[[], LightningModule],
) -> None:
    watch = Watch()
    fit(make(), FreezeUnfreezeCallback({0: "head", 2: "layer2"}), watch, val_check_interval=1)

    assert [tops(names) for names in watch.training] == [{"fc"}, {"fc"}, {"fc", "layer2"}]


def test_someone_elses_train_call_does_not_wake_what_is_frozen() -> None:
    class Wakes(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            pl_module.train()

    watch = Watch()
    fit(classifier(), FreezeUnfreezeCallback("head_only"), Wakes(), watch)

    assert [tops(moved) for moved in watch.moved] == [{"fc"}] * 3


def test_train_bn_trains_norms_in_frozen_blocks_in_groups_of_their_own() -> None:
    watch = Watch()
    fit(Plain(), FreezeUnfreezeCallback({0: "head", 2: "layer2"}, train_bn=True), watch)

    assert {"layer1.1.weight", "layer1.1.running_mean", "stem.1.running_mean"} <= watch.moved[0]
    assert "layer1.0.weight" not in watch.moved[0]
    assert set(watch.groups[0]) == {"None", "layer1/norm", "layer2/norm"}
    assert set(watch.groups[2]) == {"None", "layer1/norm", "layer2/norm", "layer2"}
    assert "layer1.2" not in watch.training[0], "dropout of a frozen block is off"


def test_unfreezing_registers_named_groups_at_a_rate_in_proportion_to_the_heads() -> None:
    watch = Watch()
    model = classifier(backbone_lr_ratio=0.5, layer_decay=0.5)
    fit(model, FreezeUnfreezeCallback({0: "head", 1: "layer2", 2: "all"}), watch)

    assert [len(groups) for groups in watch.groups] == [2, 4, 8]
    for groups in watch.groups[1:]:
        assert groups["layer2/decay"] == groups["head/decay"] * 0.5
    assert watch.groups[2]["layer1/decay"] == watch.groups[2]["head/decay"] * 0.25


def test_the_rate_of_a_phase_can_be_given() -> None:
    watch = Watch()
    model = classifier(lr_scheduler="constant")
    schedule = {
        0: "head",
        1: {"modules": "layer2", "lr": 0.03},
        2: {"modules": "layer1", "lr_scale": 0.2},
    }
    fit(model, FreezeUnfreezeCallback(schedule), watch)

    assert watch.groups[2]["layer2/decay"] == pytest.approx(0.03, rel=1e-12)
    assert watch.groups[2]["layer1/decay"] == pytest.approx(0.1 * 0.2, rel=1e-12)


def test_a_users_own_groups_and_rates_are_kept() -> None:
    def two_rates(net: nn.Module) -> Optimizer:
        head = {"params": net.fc.parameters(), "lr": 0.3, "name": "fast"}
        rest = [p for name, p in net.named_parameters() if not name.startswith("fc")]
        return Adam([head, {"params": rest, "lr": 0.003, "name": "slow", "weight_decay": 0.1}])

    watch = Watch()
    model = Plain(two_rates)
    trainer = fit(model, FreezeUnfreezeCallback({0: "head", 1: "layer2"}), watch)

    assert watch.groups[0] == {"fast": 0.3}
    assert watch.groups[2] == {"fast": 0.3, "layer2/slow": pytest.approx(0.003, rel=1e-12)}
    assert trainer.optimizers[0].param_groups[1]["weight_decay"] == 0.1


@pytest.mark.parametrize("make", [partial(SGD, momentum=0.9, weight_decay=0.1), AdamW])
def test_frozen_parameters_have_neither_gradient_nor_optimizer_state(make: Any) -> None:
    model = Plain(lambda net: make(net.parameters(), lr=0.1))
    trainer = fit(model, FreezeUnfreezeCallback({0: ["head", "layer2"]}))

    frozen = [p for p in model.parameters() if not p.requires_grad]
    assert len(frozen) == 6
    assert all(p.grad is None for p in frozen)
    assert not [p for p in frozen if p in trainer.optimizers[0].state]


def test_fresh_layers_of_equal_values_are_all_trained() -> None:
    """Lightning's BackboneFinetuning tells parameters apart by value, and would drop one here."""

    class Twins(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(
                nn.Flatten(),
                nn.Linear(300, 4),
                nn.LayerNorm(4),
                nn.Linear(4, 4),
                nn.LayerNorm(4),
                nn.Linear(4, 3),
            )

    model = Twins()
    trainer = fit(model, FreezeUnfreezeCallback({0: "head", 1: "all"}), max_epochs=2)

    held = [p for group in trainer.optimizers[0].param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.parameters()}


def test_validate_test_and_predict_alone_freeze_nothing() -> None:
    model = classifier()
    callback = FreezeUnfreezeCallback("head_only")
    trainer = Trainer(logger=False, enable_progress_bar=False, callbacks=[callback])
    trainer.validate(model, loader(), verbose=False)
    trainer.test(model, loader(), verbose=False)
    trainer.predict(model, loader())

    assert all(p.requires_grad for p in model.parameters())
    assert all(module.training for module in model.modules())


def test_what_trained_last_still_trains_after_fit_and_test() -> None:
    model = classifier()
    trainer = fit(model, FreezeUnfreezeCallback({0: "head", 1: "layer2"}))
    trainer.test(model, loader(), verbose=False)

    names = {name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad}
    assert names == {"fc", "layer2"}


def test_a_second_fit_goes_on_in_the_phase_that_its_epochs_have_reached() -> None:
    watch = Watch()
    model, callback = classifier(), FreezeUnfreezeCallback({0: "head", 2: "layer2"})
    trainer = fit(model, callback, watch, max_epochs=3)
    trainer.fit_loop.max_epochs = 4
    trainer.fit(model, loader(), loader())

    assert tops(watch.moved[3]) == {"fc", "layer2"}


def test_one_callback_serves_a_second_trainer_from_its_start() -> None:
    watch = Watch()
    callback = FreezeUnfreezeCallback({0: "head", 1: "layer2"})
    fit(classifier(), callback, max_epochs=2)
    fit(classifier(), callback, watch, max_epochs=2)

    assert [tops(moved) for moved in watch.moved] == [{"fc"}, {"fc", "layer2"}]


def test_the_users_max_epochs_is_kept() -> None:
    trainer = fit(classifier(), FreezeUnfreezeCallback("gradual"), max_epochs=2)

    assert (trainer.max_epochs, trainer.current_epoch) == (2, 2)


def test_a_trial_run_may_use_the_schedule_of_a_long_one() -> None:
    trainer = fit(classifier(), FreezeUnfreezeCallback({0: "head", 5: "all"}), fast_dev_run=True)

    assert trainer.global_step == 1


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({0: "head", 1: "layr2"}, "'layr2' matches nothing. Did you mean 'layer2'"),
        ({0: "head", 3: "all"}, "epoch 3: never reached, the last of max_epochs=3 is epoch 2"),
        ({0: "head", 1: "layer2", 2: ["layer2", "layer1"]}, "'layer2' overlaps: all of it trains"),
        ({0: "head", 1: "all", 2: "layer1"}, "'layer1' overlaps: all of it trains from epoch 1"),
        ({0: "head", 1: "re:layer9.*"}, "'re:layer9.*' matches nothing"),
        ({0: "head", 1: 17}, "17 is out of range"),
        ({"gradual": {"every": 2}}, "never reached"),
    ],
)
def test_a_schedule_that_cannot_be_followed_is_refused_before_training(
    schedule: dict[Any, Any], message: str
) -> None:
    model = classifier()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    with pytest.raises(ValueError, match=re.escape(message)):
        fit(model, FreezeUnfreezeCallback(schedule))

    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("graduall", "Did you mean 'gradual'"),
        ({2: "head"}, "nothing would train before epoch 2"),
        ({}, "nothing would train at all"),
        ({0: "head", -1: "all"}, "whole number from 0 on"),
        ({0: "head", "x": "all"}, "whole number from 0 on"),
        ({0: {"modules": "head", "lr": 1, "lr_scale": 2}}, "keep one of them"),
        ({0: {"modules": "head", "lrs": 1}}, "Did you mean 'lr'"),
        ({0: []}, "selects nothing"),
        ({"last_n": {"m": 2}}, "Unknown argument"),
    ],
)
def test_a_schedule_that_cannot_be_read_is_refused_at_once(schedule: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FreezeUnfreezeCallback(schedule)


class Listed(LRScheduler):
    """A scheduler of the user's own, with a list that nobody else knows."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.factors = [0.9] * len(optimizer.param_groups)
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        groups = self.optimizer.param_groups
        return [g["lr"] * factor for g, factor in zip(groups, self.factors, strict=True)]


def test_a_scheduler_that_could_not_follow_is_refused_before_training() -> None:
    class Own(Plain):
        def configure_optimizers(self) -> Any:
            optimizer = SGD(self.net.parameters(), lr=0.1)
            return [optimizer], [Listed(optimizer)]

    with pytest.raises(ValueError, match="Listed keeps `factors`"):
        fit(Own(), FreezeUnfreezeCallback({0: "head", 1: "layer2"}))


def test_each_phase_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        fit(classifier(), FreezeUnfreezeCallback({0: "head", 1: "layer2"}))

    told = [r.getMessage() for r in caplog.records if "parameters train" in r.getMessage()]
    assert len(told) == 2
    assert told[1].startswith("Epoch 1: training layer2")
    assert "339 of 607 parameters train (55.8%)" in told[1]
    assert "head 0.0" in told[1]

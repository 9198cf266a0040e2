"""Unfreezing beside Lightning's other callbacks, arguments and calls."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.tuner import Tuner
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, StepLR

from lit_finetune import FinetuneClassifier
from lit_finetune.callbacks import FreezeUnfreezeCallback
from lit_finetune.datamodules import DigitsDataModule

SCHEDULE = {0: "head", 1: "layer2", 2: "layer1"}
BATCHES = 4
State = dict[str, Tensor]


class Net(nn.Module):
    """Three stages with batch statistics and dropout; the first is never trained here."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.layer1 = nn.Sequential(nn.Conv2d(4, 4, 3, 2), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.layer2 = nn.Sequential(nn.Conv2d(4, 8, 3, 2), nn.BatchNorm2d(8), nn.Dropout(0.5))
        self.fc = nn.Linear(8, 3)
        nn.init.uniform_(self.stem[1].running_mean)  # as of a pretrained network
        self.stem[1].num_batches_tracked.fill_(100)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer2(self.layer1(self.stem(x))).mean((2, 3)))


class Watch(Callback):
    """What moved in each epoch, by its top module, and the rates at each epoch's end."""

    def __init__(self) -> None:
        self.moved: list[set[str]] = []
        self.rates: list[dict[str, float]] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._before = state_of(pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.moved.append(moved(self._before, pl_module))
        groups = trainer.optimizers[0].param_groups
        self.rates.append({str(group["name"]): group["lr"] for group in groups})


def state_of(model: nn.Module) -> State:
    return {name: value.clone() for name, value in model.state_dict().items()}


def moved(before: State, model: nn.Module) -> set[str]:
    now = model.state_dict()
    return {name.split(".")[1] for name in now if not torch.equal(now[name], before[name])}


def digits(batch_size: int = 16) -> DigitsDataModule:
    return DigitsDataModule(digits=[0, 1, 2], batch_size=batch_size, image_size=16, num_workers=0)


def classifier(**options: Any) -> FinetuneClassifier:
    """The same one every time."""
    seed_everything(0, verbose=False)
    settings = {"optimizer": partial(SGD, momentum=0.9), "lr": 0.1, "backbone_lr_ratio": 0.5}
    return FinetuneClassifier(Net(), num_classes=3, **{**settings, **options})


def make_trainer(*callbacks: Callback, **options: Any) -> Trainer:
    settings = {
        "max_epochs": 3,
        "limit_train_batches": BATCHES,
        "limit_val_batches": 1,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(callbacks=list(callbacks), **{**settings, **options})


def fit(*callbacks: Callback, ckpt_path: Any = None, **options: Any) -> FinetuneClassifier:
    model = classifier()
    trainer = make_trainer(*callbacks, **options)
    trainer.fit(model, digits(), ckpt_path=ckpt_path, weights_only=True)
    return model


BESIDE: dict[str, tuple[list[Callable[[], Callback]], dict[str, Any]]] = {
    "ema": ([partial(EMAWeightAveraging, decay=0.5)], {}),
    "swa": ([partial(StochasticWeightAveraging, 0.05, swa_epoch_start=1)], {}),
    "accumulation by epoch": ([partial(GradientAccumulationScheduler, {0: 1, 1: 3})], {}),
    "accumulation": ([], {"accumulate_grad_batches": 3}),
    "clipping by norm": ([], {"gradient_clip_val": 0.1}),
    "clipping by value": ([], {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"}),
    "overfit_batches": ([], {"overfit_batches": 2}),
    "a share of the batches": ([], {"limit_train_batches": 0.2}),
    "loaders anew": ([], {"reload_dataloaders_every_n_epochs": 1}),
    "validation amid epochs": ([], {"val_check_interval": 0.5}),
    "validation by steps": ([], {"val_check_interval": 3, "check_val_every_n_epoch": None}),
    "validation now and then": ([], {"check_val_every_n_epoch": 2}),
    "no sanity check": ([], {"num_sanity_val_steps": 0}),
    "steps alone": ([], {"max_epochs": None, "max_steps": 3 * BATCHES}),
}


@pytest.mark.parametrize("name", BESIDE)
def test_what_moves_follows_the_schedule_whatever_else_is_asked_for(name: str) -> None:
    others, options = BESIDE[name]
    watch = Watch()
    fit(FreezeUnfreezeCallback(SCHEDULE), *(make() for make in others), watch, **options)

    assert watch.moved[:3] == [{"fc"}, {"fc", "layer2"}, {"fc", "layer2", "layer1"}]


ONLOOKERS: dict[str, Callable[[Path], Callback]] = {
    "early stopping": lambda _: EarlyStopping("val/loss", patience=9),
    "checkpoints": lambda folder: ModelCheckpoint(folder, monitor="val/loss", save_top_k=3),
    "rates": lambda _: LearningRateMonitor(log_momentum=True, log_weight_decay=True),
}


@pytest.mark.parametrize("name", ONLOOKERS)
def test_a_callback_that_only_looks_on_changes_nothing(tmp_path: Path, name: str) -> None:
    alone = fit(FreezeUnfreezeCallback(SCHEDULE))
    onlooker = ONLOOKERS[name](tmp_path)
    watched = fit(onlooker, FreezeUnfreezeCallback(SCHEDULE), logger=CSVLogger(tmp_path))

    assert moved(state_of(alone), watched) == set()


def test_early_stopping_ends_the_run_between_two_phases() -> None:
    watch = Watch()
    stop = EarlyStopping("val/loss", patience=0, min_delta=100)
    fit(FreezeUnfreezeCallback(SCHEDULE), stop, watch)

    assert watch.moved == [{"fc"}, {"fc", "layer2"}]


def test_a_limit_in_time_alone_is_a_run_without_a_last_epoch() -> None:
    watch = Watch()
    model = classifier(lr_scheduler="constant")
    callback = FreezeUnfreezeCallback(SCHEDULE)
    trainer = make_trainer(callback, watch, max_epochs=None, max_time={"seconds": 1})
    trainer.fit(model, digits())

    assert watch.moved[2] == {"fc", "layer2", "layer1"}


def test_each_of_the_best_checkpoints_resumes_to_the_same_end(tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path, monitor="val/loss", save_top_k=3)
    whole = fit(FreezeUnfreezeCallback(SCHEDULE), best)
    kept = sorted(tmp_path.glob("*.ckpt"))
    assert len(kept) == 3

    for path in kept:
        resumed = fit(FreezeUnfreezeCallback(SCHEDULE), ckpt_path=path)
        assert moved(state_of(whole), resumed) == set(), path.name


def test_rates_are_logged_under_the_names_of_the_groups_as_they_join(tmp_path: Path) -> None:
    monitor = LearningRateMonitor("epoch", log_momentum=True, log_weight_decay=True)
    fit(FreezeUnfreezeCallback(SCHEDULE), monitor, logger=CSVLogger(tmp_path))

    blocks = {"head": 3, "layer2": 2, "layer1": 1}
    assert {name: len(rates) for name, rates in monitor.lrs.items()} == {
        f"lr-SGD/{block}/{kind}": epochs
        for block, epochs in blocks.items()
        for kind in ("decay", "no_decay")
    }
    head, layer2 = (monitor.lrs[f"lr-SGD/{block}/decay"] for block in ("head", "layer2"))
    assert layer2 == [rate / 2 for rate in head[1:]]
    assert monitor.last_momentum_values["lr-SGD/layer1/decay-momentum"] == 0.9


class Averaged(Callback):
    """The exponential moving average of every parameter, by definition."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.average: State = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        for name, now in pl_module.named_parameters():
            old = self.average.get(name, now)  # the first one counts whole
            self.average[name] = torch.lerp(old.detach(), now.detach(), 0.1)


def test_the_moving_average_is_that_of_what_trained_and_exact_for_what_did_not() -> None:
    before, reference = state_of(classifier()), Averaged()
    model = fit(reference, EMAWeightAveraging(decay=0.9), FreezeUnfreezeCallback(SCHEDULE))

    assert moved(before, model) == {"fc", "layer2", "layer1"}
    for name, value in model.named_parameters():
        torch.testing.assert_close(value.detach(), reference.average[name])


AVERAGING: dict[str, Callable[[], Callback]] = {
    "ema": partial(EMAWeightAveraging, decay=0.7),
    "swa": partial(StochasticWeightAveraging, 0.05, swa_epoch_start=1, annealing_epochs=2),
}


@pytest.mark.parametrize("name", AVERAGING)
def test_a_run_with_averaged_weights_resumes_at_each_epoch_to_the_same_end(
    tmp_path: Path, name: str
) -> None:
    schedule = {0: "head", 1: "layer2", 2: "layer1"}
    keep = ModelCheckpoint(tmp_path, save_top_k=-1, save_on_train_epoch_end=True)
    watch = Watch()
    average = AVERAGING[name]
    whole = fit(average(), FreezeUnfreezeCallback(schedule), watch, keep, max_epochs=5)

    for path in sorted(tmp_path.glob("*.ckpt"))[:4]:
        again = Watch()
        callbacks = [average(), FreezeUnfreezeCallback(schedule), again]
        resumed = fit(*callbacks, max_epochs=5, ckpt_path=path)
        assert moved(state_of(whole), resumed) == set(), path.name
        assert again.rates[-1] == watch.rates[-1], path.name


@pytest.mark.parametrize("annealing_epochs", [0, 1, 3])
@pytest.mark.parametrize("swa_is_first", [True, False])
def test_rates_stay_in_proportion_under_stochastic_weight_averaging(
    swa_is_first: bool, annealing_epochs: int
) -> None:
    watch = Watch()
    average = StochasticWeightAveraging(0.05, swa_epoch_start=3, annealing_epochs=annealing_epochs)
    unfreeze = FreezeUnfreezeCallback({0: ["head", "layer2"], 2: "layer1", 3: "stem"})
    callbacks = [average, unfreeze] if swa_is_first else [unfreeze, average]
    model = classifier(layer_decay=0.5, lr_scheduler="constant")
    make_trainer(*callbacks, watch, max_epochs=5).fit(model, digits())

    for rates in watch.rates:
        for block, ratio in {"layer2": 0.5, "layer1": 0.25, "stem": 0.125}.items():
            head, rate = rates["head/decay"], rates.get(f"{block}/decay")
            assert rate is None or rate == pytest.approx(head * ratio, rel=1e-12)
    assert watch.rates[-1]["head/decay"] == 0.05


def test_rates_that_swa_was_given_group_by_group_are_kept() -> None:
    watch = Watch()
    average = StochasticWeightAveraging([0.05, 0.05, 0.2, 0.2], 2, annealing_epochs=0)
    fit(FreezeUnfreezeCallback({0: ["head", "layer2"]}), average, watch)

    assert watch.rates[-1]["layer2/decay"] == 0.2


def test_statistics_of_frozen_layers_outlive_stochastic_weight_averaging() -> None:
    before = state_of(classifier())
    average = StochasticWeightAveraging(0.05, swa_epoch_start=1)
    model = fit(FreezeUnfreezeCallback(SCHEDULE), average)

    assert moved(before, model) == {"fc", "layer2", "layer1"}
    assert model.backbone.layer1[1].num_batches_tracked == BATCHES, "gathered anew at the end"


def test_a_share_of_the_run_is_one_of_the_users_epochs_under_stochastic_weight_averaging() -> None:
    watch = Watch()
    schedule = [{"modules": "head"}, {"at": 0.75, "modules": "layer2"}]
    average = StochasticWeightAveraging(0.05, swa_epoch_start=4)
    fit(average, FreezeUnfreezeCallback(schedule), watch, max_epochs=5)

    assert watch.moved[:5] == [{"fc"}] * 3 + [{"fc", "layer2"}] * 2


class Modes:
    """Whether the stem was ever in train mode while it was used."""

    def __init__(self, model: FinetuneClassifier) -> None:
        self.was_training = False
        model.backbone.stem[1].register_forward_pre_hook(self.note)

    def note(self, module: nn.Module, inputs: Any) -> None:
        self.was_training |= module.training


TUNE: dict[str, Callable[[Trainer, FinetuneClassifier, DigitsDataModule], Any]] = {
    "lr_find": lambda trainer, model, data: Tuner(trainer).lr_find(
        model, data, num_training=20, early_stop_threshold=None, update_attr=False
    ),
    "scale_batch_size": lambda trainer, model, data: Tuner(trainer).scale_batch_size(
        model, data, max_trials=2, init_val=16, steps_per_trial=2
    ),
}


@pytest.mark.parametrize("name", TUNE)
def test_the_tuner_leaves_no_trace(name: str) -> None:
    expected = fit(FreezeUnfreezeCallback(SCHEDULE))
    model, data = classifier(), digits()
    before, stem = state_of(model), Modes(model)
    trainer = make_trainer(FreezeUnfreezeCallback(SCHEDULE), limit_train_batches=None)
    TUNE[name](trainer, model, data)

    assert moved(before, model) == set()
    assert all(p.requires_grad for p in model.parameters())
    assert all(module.training for module in model.modules())
    assert not stem.was_training, "the trial is of the frozen phase"
    data.batch_size = 16
    trainer.limit_train_batches = BATCHES
    trainer.fit(model, data)
    assert moved(state_of(expected), model) == set()


def test_the_rate_that_the_tuner_found_leads_all_groups() -> None:
    watch = Watch()
    model, data = classifier(lr_scheduler="constant"), digits()
    trainer = make_trainer(FreezeUnfreezeCallback(SCHEDULE), watch, limit_train_batches=8)
    finder = Tuner(trainer).lr_find(model, data, num_training=20, early_stop_threshold=None)
    assert finder is not None
    found = finder.suggestion()
    trainer.fit(model, data)

    assert model.lr == found is not None
    assert watch.rates[-1]["head/decay"] == found
    assert watch.rates[-1]["layer1/decay"] == pytest.approx(found / 2, rel=1e-12)


@pytest.mark.parametrize("finder_is_first", [True, False])
def test_a_learning_rate_finder_among_the_callbacks_tries_the_frozen_phase(
    finder_is_first: bool,
) -> None:
    watch = Watch()
    finder = LearningRateFinder(num_training_steps=20, early_stop_threshold=None)
    unfreeze = FreezeUnfreezeCallback(SCHEDULE)
    callbacks = [finder, unfreeze] if finder_is_first else [unfreeze, finder]
    model = classifier(lr_scheduler="constant")
    stem = Modes(model)
    make_trainer(*callbacks, watch, limit_train_batches=8).fit(model, digits())

    assert not stem.was_training
    assert watch.moved == [{"fc"}, {"fc", "layer2"}, {"fc", "layer2", "layer1"}]
    assert watch.rates[-1]["head/decay"] == model.lr != 0.1
    assert watch.rates[-1]["layer1/decay"] == pytest.approx(model.lr / 2, rel=1e-12)


def test_overfitting_a_few_batches_sees_the_same_pictures_each_epoch() -> None:
    class Labels(Callback):
        seen: list[list[int]] = []  # noqa: RUF012

        def on_train_batch_start(
            self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
        ) -> None:
            self.seen.append(batch[1].tolist())

    labels = Labels()
    fit(FreezeUnfreezeCallback(SCHEDULE), labels, overfit_batches=2)

    assert labels.seen[:2] == labels.seen[2:4] == labels.seen[4:]


class TwoOptimizers(LightningModule):
    """A user's own loop: one optimizer for the head, one for the rest, a scheduler each."""

    def __init__(self, toggles: bool) -> None:
        super().__init__()
        self.net = Net()
        self.toggles = toggles
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        body = [p for name, p in self.net.named_parameters() if not name.startswith("fc")]
        head = SGD(self.net.fc.parameters(), lr=0.1, momentum=0.9)
        rest = AdamW(body, lr=0.01)
        return [head, rest], [StepLR(head, 1, 0.5), CosineAnnealingLR(rest, 3)]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        for optimizer in self.optimizers():
            if self.toggles:
                self.toggle_optimizer(optimizer)
            loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
            optimizer.zero_grad()
            if loss.requires_grad:
                self.manual_backward(loss)
                self.clip_gradients(optimizer, 0.1)
                optimizer.step()
            if self.toggles:
                self.untoggle_optimizer(optimizer)

    def on_train_epoch_end(self) -> None:
        for scheduler in self.lr_schedulers():
            scheduler.step()


@pytest.mark.parametrize("toggles", [False, True])
def test_two_optimizers_of_a_users_own_loop_follow_the_schedule(toggles: bool) -> None:
    class WatchBoth(Watch):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            self.moved.append(moved(self._before, pl_module))

    watch = WatchBoth()
    schedule = {0: "head", 1: "layer2", 2: {"modules": "layer1", "lr_scale": 0.1}}
    trainer = make_trainer(FreezeUnfreezeCallback(schedule), watch)
    trainer.fit(TwoOptimizers(toggles), digits())

    assert watch.moved == [{"fc"}, {"fc", "layer2"}, {"fc", "layer2", "layer1"}]
    head, rest = (optimizer.param_groups for optimizer in trainer.optimizers)
    assert [len(group["params"]) for group in head] == [2]
    assert [len(group["params"]) for group in rest] == [0, 4, 4]
    assert rest[2]["lr"] == pytest.approx(rest[0]["lr"] * 0.1, rel=1e-12)
    assert len(trainer.optimizers[1].state) == 8


def test_layers_that_are_made_in_configure_model_follow_the_schedule() -> None:
    class Late(TwoOptimizers):
        def __init__(self) -> None:
            super().__init__(toggles=False)
            self.net = None

        def configure_model(self) -> None:
            if self.net is None:
                self.net = Net()

    model = Late()
    make_trainer(FreezeUnfreezeCallback({0: "head", 2: "layer2"})).fit(model, digits())

    trained = {name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"fc", "layer2"}


def test_a_second_fit_goes_on_at_the_same_proportions() -> None:
    watch = Watch()
    model = classifier(lr_scheduler="constant")
    trainer = make_trainer(FreezeUnfreezeCallback({0: "head", 2: "layer2"}), watch)
    trainer.fit(model, digits())
    trainer.fit_loop.max_epochs = 4
    trainer.fit(model, digits())

    assert watch.moved[3] == {"fc", "layer2"}
    assert watch.rates[3] == watch.rates[2]


def test_evaluating_a_checkpoint_freezes_nothing(tmp_path: Path) -> None:
    fit(FreezeUnfreezeCallback(SCHEDULE), ModelCheckpoint(tmp_path, filename="last"))
    model = classifier()
    trainer = make_trainer(FreezeUnfreezeCallback(SCHEDULE))
    trainer.validate(model, digits(), ckpt_path=tmp_path / "last.ckpt", verbose=False)

    assert all(p.requires_grad for p in model.parameters())
    assert all(module.training for module in model.modules())


def test_a_run_that_broke_off_holds_nothing_in_the_next_one() -> None:
    class OutOfMemory(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise RuntimeError("out of memory")

    model, watch = classifier(), Watch()
    with pytest.raises(RuntimeError, match="out of memory"):
        make_trainer(FreezeUnfreezeCallback("head_only"), OutOfMemory()).fit(model, digits())
    stem = Modes(model)
    make_trainer(FreezeUnfreezeCallback("full"), watch).fit(model, digits())

    assert stem.was_training
    assert watch.moved[0] == {"stem", "layer1", "layer2", "fc"}

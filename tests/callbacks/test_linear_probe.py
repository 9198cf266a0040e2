"""A run begins with the best linear head for the features that its network has."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_finetune import FinetuneClassifier, fit_linear_probe
from lit_finetune.callbacks import FreezeUnfreezeCallback, LastCheckpoint, LinearProbe
from lit_finetune.datamodules import DigitsDataModule
from lit_finetune.probe.head import set_head


class Net(nn.Module):
    """Two stages with batch statistics and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = self.stage(3, 8)
        self.layer2 = self.stage(8, 12)
        self.fc = nn.Linear(12, 3)

    def stage(self, width: int, out: int) -> nn.Module:
        convolution = nn.Conv2d(width, out, 3, stride=2, padding=1)
        return nn.Sequential(convolution, nn.BatchNorm2d(out), nn.ReLU(), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer2(self.layer1(x)).mean((2, 3)))


class Squeezed(Net):
    """A convolution as head, and a ReLU behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Conv2d(12, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer2(self.layer1(x))).relu().mean((2, 3))


class SqueezedInPlace(Net):
    """As SqueezeNet: the ReLU behind the head works in place."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Conv2d(12, 3, 1)
        self.end = nn.Sequential(nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.fc(self.layer2(self.layer1(x))))


class Capped(Net):
    """No small score tells that it holds the scores below some number."""

    cap = 30.0

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clamp_(-self.cap, self.cap)


class CappedLow(Capped):
    cap = 9.0


class Sometimes(Net):
    """It adds something to the scores, but not for every batch."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.tensor([0.0, 0.0, 3.0]) * (len(x) > 2)


def model(net: type[nn.Module] = Net, **options: Any) -> FinetuneClassifier:
    torch.manual_seed(3)
    return FinetuneClassifier(net(), num_classes=3, lr=0.01, head_name="fc", **options)


def digits(**options: Any) -> DigitsDataModule:
    return DigitsDataModule(
        **{"digits": [0, 1, 2], "batch_size": 32, "image_size": 16, "num_workers": 0, **options}
    )


def trainer(*callbacks: Callback, **options: Any) -> Trainer:
    return Trainer(
        **{
            "max_epochs": 1,
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **options,
        },
        callbacks=list(callbacks),
    )


def fit(net: FinetuneClassifier, *callbacks: Callback, data: Any = None, **options: Any) -> Trainer:
    seed_everything(0, verbose=False)
    made = trainer(*callbacks, **options)
    made.fit(net, data or digits(), weights_only=True)
    return made


def state(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def result(probe: LinearProbe) -> Any:
    assert probe.result is not None
    return probe.result


@pytest.mark.parametrize("net", [Net, Squeezed, SqueezedInPlace, Capped])
def test_validation_counts_what_the_probe_has_said(net: type[nn.Module]) -> None:
    probe, classifier = LinearProbe(), model(net)

    ran = fit(classifier, probe, max_epochs=0)

    metrics = ran.validate(classifier, digits(), verbose=False)[0]
    assert metrics["val/acc"] == pytest.approx(result(probe).val_accuracy)
    assert metrics["val/loss"] == pytest.approx(result(probe).val_loss, abs=1e-4)
    assert metrics["val/acc"] > 0.8


@pytest.mark.parametrize("net", [CappedLow, Sometimes])
def test_a_head_with_which_the_network_says_something_else_is_not_left(net: Any) -> None:
    probe, classifier = LinearProbe(l2=1e-6), model(net)
    before = state(classifier)

    with pytest.raises(ValueError, match=r"left the head `backbone\.fc` as it was"):
        fit(classifier, probe, max_epochs=0)

    assert same(before, state(classifier))
    assert probe.result is None


@pytest.mark.parametrize("net", [Net, Squeezed])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_its_figures_are_those_of_the_network_in_the_precision_of_the_run(
    net: Any, precision: Any
) -> None:
    if net is Squeezed and precision != "32-true":
        pytest.skip("refused: a bias cannot keep all logits above 0 there")
    probe = LinearProbe(l2=1e-4)
    classifier = model(net, class_weights=[0.5, 1.0, 4.0], label_smoothing=0.1)

    ran = fit(classifier, probe, max_epochs=0, precision=precision)

    metrics = ran.validate(classifier, digits(), verbose=False)[0]
    assert metrics["val/acc"] == pytest.approx(result(probe).val_accuracy)
    assert metrics["val/loss"] == pytest.approx(result(probe).val_loss, abs=1e-5)


def test_the_head_is_that_of_the_plain_function() -> None:
    options: dict[str, Any] = {"class_weights": [1.0, 2.0, 3.0], "label_smoothing": 0.1}
    probe, classifier = LinearProbe(l2=0.01), model(**options)
    fit(classifier, probe, max_epochs=0)
    data = digits(train_augmentation="none")
    data.setup("fit")

    parts = [data._dataset("train")[index] for index in range(len(data._dataset("train")))]
    with torch.no_grad():
        features = classifier.eval().forward_features(torch.stack([image for image, _ in parts]))
    labels = torch.tensor([label for _, label in parts])
    by_hand = fit_linear_probe(features, labels, l2=0.01, **options)

    weight = classifier.get_classifier().weight
    torch.testing.assert_close(weight.double(), by_hand.weight, rtol=1e-3, atol=1e-3)
    assert result(probe).loss == pytest.approx(by_hand.loss, rel=1e-4)


def test_all_but_the_head_stays_the_same_bits_with_its_statistics() -> None:
    classifier = model()
    before = state(classifier)

    fit(classifier, LinearProbe(), max_epochs=0)

    after = state(classifier)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"backbone.fc.weight", "backbone.fc.bias"}
    assert all(module.training for module in classifier.modules())


class SetHead(Callback):
    """Set the head by hand, where the probe would have."""

    def __init__(self, found: Any) -> None:
        self.found = found

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, FinetuneClassifier)
        head = pl_module.get_classifier()
        assert isinstance(head, nn.Linear)
        set_head(head, self.found.weight, self.found.bias)


def plain_loaders() -> dict[str, Any]:
    """Loaders of someone's own, which draw the order from what all draw from."""
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(48, 3, 8, 8, generator=generator), torch.arange(48) % 3
    images += labels[:, None, None, None]
    data = TensorDataset(images, labels)
    train = DataLoader(data, batch_size=8, shuffle=True, drop_last=True)
    return {"train_dataloaders": train, "val_dataloaders": DataLoader(data, batch_size=16)}


@pytest.mark.parametrize("is_own", [False, True])
def test_training_goes_on_as_from_the_same_head_set_by_hand(is_own: bool) -> None:
    one, other, probe = model(), model(), LinearProbe()
    if is_own:
        seed_everything(0, verbose=False)
        trainer(probe, max_epochs=2).fit(one, **plain_loaders())
        seed_everything(0, verbose=False)
        trainer(SetHead(result(probe)), max_epochs=2).fit(other, **plain_loaders())
    else:
        fit(one, probe, max_epochs=2, limit_train_batches=3)
        fit(other, SetHead(result(probe)), max_epochs=2, limit_train_batches=3)

    assert same(state(one), state(other))


def test_lp_ft_trains_all_from_the_first_epoch_on_after_a_probe() -> None:
    with_probe = FreezeUnfreezeCallback("lp_ft")
    alone = FreezeUnfreezeCallback("lp_ft")
    fit(model(), with_probe, LinearProbe(), max_epochs=3, limit_train_batches=1)
    fit(model(), alone, max_epochs=3, limit_train_batches=1)

    assert with_probe.plan is not None
    assert alone.plan is not None
    assert [phase.label for phase in with_probe.plan.phases] == ["all"]
    assert [phase.label for phase in alone.plan.phases] == ["head", "all"]


@pytest.mark.parametrize("schedule", ["lp_ft", {"gradual": {"every": 1}}])
def test_a_resumed_run_ends_as_one_that_was_never_stopped(tmp_path: Path, schedule: Any) -> None:
    def run(probe: LinearProbe, ckpt_path: Path | None = None) -> dict[str, Tensor]:
        seed_everything(0, verbose=False)
        classifier = model()
        keep = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
        callbacks = [probe, FreezeUnfreezeCallback(schedule), keep]
        options = {"max_epochs": 3, "limit_train_batches": 3, "enable_checkpointing": True}
        made = trainer(*callbacks, **options)
        made.fit(classifier, digits(), ckpt_path=ckpt_path, weights_only=True)
        return state(classifier)

    resumed_probe = LinearProbe()

    whole = run(LinearProbe())
    resumed = run(resumed_probe, tmp_path / "epoch=0.ckpt")

    assert same(whole, resumed)
    assert resumed_probe.result is None


def test_a_run_of_no_epochs_leaves_a_checkpoint_of_the_head(tmp_path: Path) -> None:
    probe, classifier = LinearProbe(), model()
    fit(classifier, probe, LastCheckpoint(tmp_path), max_epochs=0, enable_checkpointing=True)

    loaded = FinetuneClassifier.load_from_checkpoint(tmp_path / "last.ckpt", backbone=Net())
    assert same(state(classifier), state(loaded))

    again, later = LinearProbe(l2=1.0), model()
    made = trainer(again, max_epochs=1)
    made.fit(later, digits(), ckpt_path=str(tmp_path / "last.ckpt"), weights_only=True)
    assert again.result is None
    assert made.global_step > 0


def test_a_second_fit_goes_on_with_the_head_that_was_trained() -> None:
    probe, classifier = LinearProbe(), model()
    made = fit(classifier, probe, limit_train_batches=2)
    trained = state(classifier)

    made.fit_loop.max_epochs = 1
    made.fit(classifier, digits())

    assert probe.result is None
    assert same(trained, state(classifier))


class Count(Callback):
    """How many pictures the head has seen when the run begins."""

    def __init__(self, classifier: FinetuneClassifier) -> None:
        self.seen: list[int] = []
        self.at_start = 0
        head = classifier.get_classifier()
        head.register_forward_pre_hook(lambda _, args: self.seen.append(len(args[0])))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.at_start = sum(self.seen)


@pytest.mark.parametrize(
    ("options", "expected", "parts"),
    [
        ({"fast_dev_run": True}, 32 + 32, 2),
        ({"limit_train_batches": 2, "limit_val_batches": 0.5}, 64 + 53, 2),
        ({"limit_train_batches": 0.1, "limit_val_batches": 0}, 43, 1),
        ({}, 430 + 107, 2),
    ],
)
def test_it_looks_at_as_many_pictures_as_the_run_would(
    options: dict[str, Any], expected: int, parts: int
) -> None:
    classifier, probe = model(), LinearProbe()
    count = Count(classifier)

    fit(classifier, probe, count, max_epochs=0 if not options else 1, **options)

    # Two show what the network makes of its head, before and after; the first batch of each part
    # shows whether its logits are those of the fit.
    assert count.at_start == expected + 2 + 2 + 32 * parts
    assert result(probe).accuracy > 0.5


def test_a_trial_run_on_pictures_of_one_class_fits_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    probe = LinearProbe()

    fit(model(), probe, data=digits(batch_size=1), fast_dev_run=True)

    assert probe.result is None
    assert "are of one class" in caplog.text


def test_without_validation_the_strength_comes_from_pictures_held_out() -> None:
    probe = LinearProbe(folds=3)

    fit(model(), probe, max_epochs=0, limit_val_batches=0)

    assert result(probe).val_accuracy is None
    assert len(result(probe).trials) > 1


def test_a_run_without_training_batches_fits_nothing() -> None:
    probe = LinearProbe()

    fit(model(), probe, limit_train_batches=0)

    assert probe.result is None


def test_features_come_in_the_precision_of_the_run() -> None:
    probe, classifier = LinearProbe(), model()

    fit(classifier, probe, max_epochs=0, precision="bf16-mixed")

    exact = LinearProbe()
    fit(model(), exact, max_epochs=0)
    assert result(probe).loss != result(exact).loss
    assert result(probe).loss == pytest.approx(result(exact).loss, abs=0.02)


def test_loggers_and_the_screen_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    probe = LinearProbe()

    fit(model(), probe, logger=CSVLogger(tmp_path), limit_train_batches=1)

    (path,) = tmp_path.rglob("metrics.csv")
    first = next(row for row in csv.DictReader(path.open()) if row["probe/acc"])
    assert float(first["probe/acc"]) == pytest.approx(result(probe).val_accuracy)
    assert float(first["probe/loss"]) == pytest.approx(result(probe).val_loss)
    assert float(first["probe/l2"]) == result(probe).l2
    assert float(first["probe/time_s"]) > 0
    assert first["step"] == "0"
    assert f"accuracy {result(probe).val_accuracy:.4f}" in caplog.text


class MultiLabel(FinetuneClassifier):
    """A picture may be of several classes."""

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        target = target.type(logits.dtype)
        return nn.functional.binary_cross_entropy_with_logits(logits, target)

    def _log_training(self, *_: Any) -> None: ...


def test_labels_of_several_classes_are_fitted_class_by_class() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(60, 3, generator=generator) > 0.5).long()
    images = torch.randn(60, 3, 8, 8, generator=generator) + labels[:, :, None, None]
    loader = DataLoader(TensorDataset(images, labels), batch_size=16)
    probe, classifier = LinearProbe(l2=0.01), MultiLabel(Net(), num_classes=3)

    trainer(probe, max_epochs=0).fit(classifier, loader)

    with torch.no_grad():
        scores = classifier.eval()(images)
    assert result(probe).accuracy == pytest.approx(float(((scores > 0) == labels).double().mean()))
    assert result(probe).accuracy > 0.75


class Other(LightningModule):
    def training_step(self, batch: Any, batch_idx: int) -> None: ...
    def configure_optimizers(self) -> None: ...


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: model(head="mlp"), "type Sequential"),
        (Other, "needs a FinetuneClassifier, but got Other"),
        (lambda: FinetuneClassifier(Squeezed(), num_classes=3, head_name="fc"), "32-true"),
    ],
)
def test_what_cannot_be_probed_is_refused_before_it_trains(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(make(), LinearProbe(), precision="bf16-mixed")

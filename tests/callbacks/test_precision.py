"""Unfreezing in other precisions, and of compiled networks."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.plugins.precision import MixedPrecision
from PIL import Image
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from lit_finetune import FinetuneClassifier, list_blocks, load_weights
from lit_finetune.callbacks import FreezeUnfreezeCallback

SCHEDULE = {0: "head", 1: "layer2", 2: "layer1"}
MOVES = [{"fc"}, {"fc", "layer2"}, {"fc", "layer2", "layer1"}]
COMPILE = partial(torch.compile, backend="eager")  # dynamo alone: what comes after takes long


class Net(nn.Module):
    """Three stages with batch statistics and dropout; the first is never trained here."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.layer1 = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.layer2 = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5))
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer2(self.layer1(self.stem(x))).mean((2, 3)))


class Plain(LightningModule):
    """A user's own module."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> SGD:
        return SGD(self.net.parameters(), lr=0.1, momentum=0.9)


class Watch(Callback):
    """What moved in each epoch, by its top module, and the groups at each epoch's end."""

    def __init__(self) -> None:
        self.moved: list[set[str]] = []
        self.groups: list[list[Any]] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.before = state_of(pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        changed = differing(self.before, state_of(pl_module))
        self.moved.append({name.replace("_orig_mod.", "").split(".")[1] for name in changed})
        self.groups.append([group.get("name") for group in trainer.optimizers[0].param_groups])


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> set[str]:
    assert one.keys() == other.keys()
    return {name for name in one if not torch.equal(one[name], other[name])}


def loader() -> DataLoader[Any]:
    images = torch.randn(12, 3, 10, 10, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(images, torch.arange(12) % 3), batch_size=4)


def classifier(**options: Any) -> FinetuneClassifier:
    """The same one every time."""
    seed_everything(0, verbose=False)
    make_optimizer = partial(SGD, momentum=0.9)
    return FinetuneClassifier(Net(), num_classes=3, lr=0.1, optimizer=make_optimizer, **options)


def fit(model: Any, schedule: Any = SCHEDULE, **options: Any) -> Watch:
    """Train, and return what was seen; `folder` keeps a checkpoint of each epoch."""
    seed_everything(0, verbose=False)
    watch, folder = Watch(), options.pop("folder", None)
    ckpt_path = options.pop("ckpt_path", None)

    class Save(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if folder:
                trainer.save_checkpoint(folder / f"{trainer.current_epoch}.ckpt")

    settings = {
        "max_epochs": 3,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": [FreezeUnfreezeCallback(schedule), watch, Save()],
    }
    trainer = Trainer(**{**settings, **options})
    trainer.fit(model, loader(), ckpt_path=ckpt_path, weights_only=True)
    return watch


def scaled_half() -> dict[str, Any]:
    """`16-mixed` as on a GPU: Lightning would put bfloat16 in its place on a CPU."""
    scaler = torch.amp.GradScaler("cpu")
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler=scaler)]}


PRECISIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "bf16-mixed": lambda: {"precision": "bf16-mixed"},
    "bf16-true": lambda: {"precision": "bf16-true"},
    "64-true": lambda: {"precision": "64-true"},
    "16-mixed": scaled_half,
}


@pytest.mark.parametrize("name", PRECISIONS)
def test_the_schedule_holds_in_any_precision(name: str, tmp_path: Path) -> None:
    model = classifier(label_smoothing=0.1, class_weights=[1.0, 2.0, 3.0], mixup_alpha=0.2)
    watch = fit(model, folder=tmp_path, gradient_clip_val=1.0, **PRECISIONS[name]())
    assert watch.moved == MOVES

    for epoch in (0, 1) if name != "64-true" else ():  # Lightning resumes it in single precision
        resumed = classifier(label_smoothing=0.1, class_weights=[1.0, 2.0, 3.0], mixup_alpha=0.2)
        path = tmp_path / f"{epoch}.ckpt"
        fit(resumed, ckpt_path=path, gradient_clip_val=1.0, **PRECISIONS[name]())
        assert differing(state_of(model), state_of(resumed)) == set()


@pytest.mark.parametrize("name", PRECISIONS)
def test_probabilities_have_all_digits_in_any_precision(name: str) -> None:
    model = classifier()
    fit(model, "head_only", **PRECISIONS[name]())
    trainer = Trainer(accelerator="cpu", logger=False, **PRECISIONS[name]())
    predicted = torch.cat(trainer.predict(model, loader()))
    picture = model.predict_image(Image.new("RGB", (32, 32)))

    torch.testing.assert_close(predicted.double().sum(1), torch.ones(12).double())
    assert sum(picture.values()) == pytest.approx(1, abs=1e-6)


def compiled_later() -> FinetuneClassifier:
    model = classifier()
    model.backbone = COMPILE(model.backbone)
    return model


def compiled_in_part() -> FinetuneClassifier:
    model = classifier()
    model.backbone.layer2 = COMPILE(model.backbone.layer2)
    return model


def compiled_argument() -> FinetuneClassifier:
    seed_everything(0, verbose=False)
    make_optimizer = partial(SGD, momentum=0.9)
    return FinetuneClassifier(COMPILE(Net()), num_classes=3, lr=0.1, optimizer=make_optimizer)


COMPILED: dict[str, Callable[[], Any]] = {
    "the backbone, as an argument": compiled_argument,
    "the backbone, later": compiled_later,
    "a block": compiled_in_part,
    "the module": lambda: COMPILE(classifier()),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_a_compiled_classifier_follows_the_schedule_like_an_eager_one(name: str) -> None:
    eager, model = classifier(), COMPILED[name]()
    expected, seen = fit(eager), fit(model)

    assert seen.moved == expected.moved == MOVES
    assert seen.groups == expected.groups
    ends = zip(eager.parameters(), model.parameters(), strict=True)
    for one, other in ends:
        torch.testing.assert_close(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["the backbone, as an argument", "the backbone, later"])
def test_checkpoints_go_from_compiled_to_eager_runs_and_back(name: str, tmp_path: Path) -> None:
    whole = classifier()
    compiled, eager = COMPILED[name](), classifier()
    fit(whole)
    fit(compiled, folder=tmp_path)
    fit(eager, ckpt_path=tmp_path / "0.ckpt", folder=tmp_path)
    again = COMPILED[name]()
    fit(again, ckpt_path=tmp_path / "1.ckpt")

    assert compiled.state_dict().keys() == eager.state_dict().keys()
    for model in (eager, again):
        for one, other in zip(whole.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(one, other)


def plain_compiled() -> Plain:
    return Plain(COMPILE(Net()))


def plain_compiled_in_parts() -> Plain:
    model = Plain(Net())
    model.net.layer1 = COMPILE(model.net.layer1)
    model.net.layer2 = COMPILE(model.net.layer2)
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "schedule"),
    [
        (plain_compiled, {0: "fc", 1: "layer2.*", 2: "net.layer1"}),
        (plain_compiled_in_parts, {0: "fc.weight", 1: "layer2.1", 2: "re:layer1.0.*"}),
        (plain_compiled, {0: "net.fc", 1: "net.layer2.0.weight", 2: "children[1]"}),
        (plain_compiled_in_parts, {0: "fc", 1: "net.layer2.*", 2: "children[1]"}),
    ],
)
def test_selectors_see_through_the_compilation_of_any_module(
    make: Callable[[], Plain], schedule: Any
) -> None:
    torch.manual_seed(0)
    watch = fit(make(), schedule)

    assert watch.moved == MOVES
    assert watch.groups[2] == [None, "layer2", "layer1"]


def test_blocks_of_a_compiled_network_have_their_plain_names() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), *(nn.Conv2d(4, 4, 3) for _ in range(3)))
    network = nn.Module()
    network.features, network.head = net, nn.Linear(4, 2)
    names = [block.name for block in list_blocks(network, "head")]
    network.features = COMPILE(network.features)
    network.head = COMPILE(network.head)

    assert [block.name for block in list_blocks(network, "head")] == names
    assert [block.name for block in list_blocks(COMPILE(network), "head")] == names


def test_features_and_classifier_of_a_compiled_classifier_are_found() -> None:
    eager, model = classifier().eval(), compiled_later().eval()
    images = torch.randn(2, 3, 10, 10)
    logits = model(images)

    torch.testing.assert_close(model.forward_features(images), eager.forward_features(images))
    torch.testing.assert_close(model.get_classifier()(model.forward_features(images)), logits)
    model.reset_classifier(5)
    assert model(images).shape == (2, 5)


@pytest.mark.parametrize("compiles", ["what is saved", "what is filled"])
def test_weights_of_a_network_with_compiled_parts_fit_an_eager_one(
    compiles: str, tmp_path: Path
) -> None:
    saved, filled = Net(), Net()
    expected = state_of(saved)
    network = saved if compiles == "what is saved" else filled
    network.layer1 = COMPILE(network.layer1)
    torch.save(saved.state_dict(), tmp_path / "weights.pth")
    report = load_weights(filled, tmp_path / "weights.pth")

    assert report.share == 1
    assert not report.missing + report.unexpected + report.mismatched + report.head_dropped
    now = {name.replace("_orig_mod.", ""): value for name, value in filled.state_dict().items()}
    assert differing(expected, now) == set()


def test_a_phase_change_leaves_no_gradient_behind_in_a_compiled_network() -> None:
    """On some versions of torch a graph compiled for the frozen network went on without them."""
    torch.manual_seed(0)
    model = Plain(torch.compile(Net(), backend="aot_eager"))

    assert fit(model).moved == MOVES


@pytest.mark.slow
def test_a_compiled_network_stays_compiled_through_more_phases_than_torch_would_allow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After eight variants of a function torch gives up and runs it eagerly."""
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    flat = nn.Sequential(nn.Flatten(), *(nn.Linear(300, 300) for _ in range(9)), nn.Linear(300, 3))

    watch = fit(Plain(COMPILE(flat)), "gradual", max_epochs=10)
    assert len(watch.groups[-1]) == 10


@pytest.mark.long
@pytest.mark.parametrize("name", COMPILED)
def test_machine_code_follows_the_schedule_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "COMPILE", torch.compile)
    seed_everything(0, verbose=False)

    assert fit(COMPILED[name]()).moved == MOVES

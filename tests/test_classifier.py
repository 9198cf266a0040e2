"""The classifier as its users meet it: built, trained, saved, loaded, asked and subclassed."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassSpecificity

from lit_finetune import DataConfig, FinetuneClassifier
from lit_finetune.datamodules import DigitsDataModule


class Net(nn.Module):
    """A user's own network."""

    def __init__(self, width: int = 8, num_classes: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU())
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x).mean((2, 3)))


def trainer(**options: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "max_epochs": 1,
        "limit_train_batches": 3,
        "limit_val_batches": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(**{**defaults, **options})


def digits(**options: Any) -> DigitsDataModule:
    return DigitsDataModule(**{"digits": [4, 7, 9], "batch_size": 16, "image_size": 16, **options})


def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.randn(12, 3, 16, 16), torch.arange(12) % 3), 6)


BACKBONES = {
    "torchvision": ("resnet18", "fc"),
    "a 1x1 convolution": ("squeezenet1_1", "classifier.1"),
    "timm": ("timm/test_resnet", "fc"),
    "timm's transformer": ("timm/test_vit", "head"),
    "a module": (Net(), "fc"),
}


@pytest.mark.parametrize(("backbone", "head_name"), BACKBONES.values(), ids=BACKBONES)
def test_any_backbone_gets_a_head_for_the_classes(backbone: Any, head_name: str) -> None:
    kwargs = {"img_size": 64} if backbone == "timm/test_vit" else None
    model = FinetuneClassifier(backbone, num_classes=5, backbone_kwargs=kwargs).eval()
    images = torch.randn(2, 3, 64, 64)

    assert model.head_name == head_name
    assert model(images).shape == (2, 5)
    features = model.forward_features(images)
    logits = model.get_classifier()(features)
    assert len(features) == 2
    assert logits.flatten(1).shape[1] % 5 == 0
    assert [block.name for block in model.blocks][-1] == "head"


def test_every_parameter_is_in_one_named_group_at_a_real_rate() -> None:
    model = FinetuneClassifier("resnet18", num_classes=3, lr=0.01, layer_decay=0.5)
    run = trainer(limit_train_batches=0)
    run.fit(model, digits())
    groups = {group["name"]: group for group in run.optimizers[0].param_groups}

    assert list(groups)[:2] == ["head/decay", "head/no_decay"]
    rates = {name.split("/")[0]: group["initial_lr"] for name, group in groups.items()}
    expected = {"head": 1e-2, "layer4": 1e-3, "layer3": 5e-4, "layer2": 2.5e-4, "layer1": 1.25e-4}
    assert rates == {**expected, "stem": 6.25e-5}
    assert {g["weight_decay"] for name, g in groups.items() if "no_decay" in name} == {0.0}
    assert {g["weight_decay"] for name, g in groups.items() if "/decay" in name} == {0.01}
    held = [id(p) for group in groups.values() for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())


@pytest.mark.parametrize(
    "make",
    [
        partial(OneCycleLR, max_lr=0.5, total_steps=10),
        partial(StepLR, step_size=1),
        ReduceLROnPlateau,
    ],
)
def test_discriminative_rates_hold_under_any_scheduler(make: Callable[..., Any]) -> None:
    model = FinetuneClassifier(
        Net(),
        num_classes=3,
        backbone_lr_ratio=0.25,
        optimizer=partial(SGD, momentum=0.9),
        lr_scheduler=make,
        lr_scheduler_interval="epoch" if make is ReduceLROnPlateau else "step",
    )
    run = trainer_of(model)

    rates = {group["name"]: group["lr"] for group in run.optimizers[0].param_groups}
    assert rates["body/decay"] == rates["head/decay"] * 0.25


def test_an_optimizer_keeps_the_rate_that_it_brings() -> None:
    model = FinetuneClassifier(Net(), num_classes=3, optimizer=partial(SGD, lr=0.05, momentum=0.9))
    optimizer = trainer_of(model).optimizers[0]

    assert [g["initial_lr"] for g in optimizer.param_groups][:1] == [0.05]
    assert optimizer.param_groups[0]["momentum"] == 0.9


def test_two_rates_are_refused() -> None:
    model = FinetuneClassifier(Net(), num_classes=3, lr=0.2, optimizer=partial(SGD, lr=0.05))

    with pytest.raises(ValueError, match="Two learning rates"):
        trainer_of(model)


def trainer_of(model: LightningModule) -> Trainer:
    run = trainer()
    run.fit(model, digits())
    return run


def test_the_logged_names_are_there() -> None:
    run = trainer()
    run.fit(FinetuneClassifier(Net(num_classes=7), num_classes=10), digits(digits=None))

    names = {"train/loss", "train/acc", "val/loss", "val/acc", "val/acc_macro", "val/f1"}
    assert names | {"val/acc_top5"} <= set(run.callback_metrics)


def test_val_acc_is_the_share_of_right_answers() -> None:
    model, data = FinetuneClassifier(Net(), num_classes=3), digits()
    run = trainer(limit_val_batches=1.0)
    (result,) = run.validate(model, data, verbose=False)
    batches = [
        (model.eval()(images).argmax(1) == labels) for images, labels in data.val_dataloader()
    ]

    assert result["val/acc"] == pytest.approx(torch.cat(batches).float().mean().item())


@pytest.mark.parametrize("option", ["mixup_alpha", "cutmix_alpha", "label_smoothing", "drop_rate"])
def test_training_options_leave_evaluation_alone(option: str) -> None:
    torch.manual_seed(0)
    plain = FinetuneClassifier(Net(), num_classes=3).eval()
    other = FinetuneClassifier(Net(), num_classes=3, **{option: 0.5}).eval()
    other.load_state_dict(plain.state_dict())
    images = torch.randn(4, 3, 16, 16)

    assert torch.equal(plain(images), other(images))
    trainer().fit(other, digits())


def test_label_smoothing_and_class_weights_are_those_of_torch() -> None:
    weights = [1.0, 2.0, 0.5]
    model = FinetuneClassifier(Net(), num_classes=3, label_smoothing=0.2, class_weights=weights)
    logits, labels = torch.randn(6, 3), torch.arange(6) % 3
    expected = nn.CrossEntropyLoss(torch.tensor(weights), label_smoothing=0.2)(logits, labels)

    assert torch.equal(model.loss(logits, labels), expected)


def test_balanced_class_weights_come_from_the_data() -> None:
    model = FinetuneClassifier(Net(), num_classes=3, class_weights="balanced")
    data = digits()
    trainer().fit(model, data)
    counts = torch.tensor([data.class_counts[name] for name in data.classes])

    assert model.class_weights is not None
    assert torch.allclose(model.class_weights * counts, (counts.sum() / 3).float())


def test_balanced_class_weights_need_counted_data() -> None:
    model = FinetuneClassifier(Net(), num_classes=3, class_weights="balanced")

    with pytest.raises(ValueError, match="pass a list of weights"):
        trainer().fit(model, loader())


def test_a_plain_loader_works_too() -> None:
    run = trainer()
    run.fit(FinetuneClassifier(Net(), num_classes=3), loader(), loader())

    assert "val/acc" in run.callback_metrics


def test_a_checkpoint_needs_nothing_else(tmp_path: Path) -> None:
    model = FinetuneClassifier(
        "timm/test_resnet", num_classes=3, drop_rate=0.3, optimizer=partial(SGD, momentum=0.9)
    )
    run = trainer()
    run.fit(model, digits(mean=0.5, std=0.25))
    run.save_checkpoint(tmp_path / "model.ckpt")
    picture = Image.effect_noise((40, 30), 80).convert("RGB")

    again = FinetuneClassifier.load_from_checkpoint(tmp_path / "model.ckpt")

    assert again.classes == ["4", "7", "9"]
    assert again.data_config == DataConfig(
        mean=(0.5,) * 3, std=(0.25,) * 3, image_size=(16, 16), resize_size=16
    )
    picture.save(tmp_path / "picture.png")
    answer = again.predict_image(tmp_path / "picture.png")
    assert answer == model.predict_image(picture)
    assert set(answer) == {"4", "7", "9"}
    assert list(answer.values()) == sorted(answer.values(), reverse=True)
    assert sum(answer.values()) == pytest.approx(1)


def test_a_checkpoint_does_not_ask_for_its_weights_file_again(tmp_path: Path) -> None:
    torch.save(Net().state_dict(), tmp_path / "net.pth")
    model = FinetuneClassifier(Net(), num_classes=3, weights=str(tmp_path / "net.pth"))
    run = trainer()
    run.fit(model, loader())
    run.save_checkpoint(tmp_path / "model.ckpt")
    (tmp_path / "net.pth").unlink()

    again = FinetuneClassifier.load_from_checkpoint(tmp_path / "model.ckpt", backbone=Net())

    assert all(torch.equal(v, model.state_dict()[k]) for k, v in again.state_dict().items())


def test_a_network_that_was_passed_as_a_module_is_asked_for(tmp_path: Path) -> None:
    run = trainer()
    run.fit(FinetuneClassifier(Net(), num_classes=3), loader())
    run.save_checkpoint(tmp_path / "model.ckpt")

    with pytest.raises(ValueError, match="`backbone` must be given again"):
        FinetuneClassifier.load_from_checkpoint(tmp_path / "model.ckpt")


def test_the_head_of_a_file_for_as_many_classes_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    source = Net()
    torch.save(source.state_dict(), tmp_path / "net.pth")
    path = str(tmp_path / "net.pth")

    same = FinetuneClassifier(Net(), num_classes=3, weights=path)
    other = FinetuneClassifier(Net(), num_classes=4, weights=path)

    assert "the file's head, `fc`, for 3 classes" in caplog.text
    assert "a new head, `fc`, for 4 classes" in caplog.text
    assert torch.equal(same.get_classifier().weight, source.fc.weight)
    assert same.load_report is not None
    assert same.load_report.head_dropped == ()
    assert other.load_report is not None
    assert set(other.load_report.head_dropped) == {"fc.weight", "fc.bias"}
    assert torch.equal(other.backbone.body[0].weight, source.body[0].weight)


def test_a_checkpoint_of_another_module_is_refused(tmp_path: Path) -> None:
    content = {"state_dict": Net().state_dict(), "pytorch-lightning_version": "2.6.0"}
    torch.save(content, tmp_path / "a.ckpt")

    with pytest.raises(ValueError, match="pass its path as `weights`"):
        FinetuneClassifier.load_from_checkpoint(tmp_path / "a.ckpt", backbone=Net(), num_classes=3)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("drop_rate", [0.0, 0.5])
def test_a_head_of_as_many_classes_keeps_its_weights(drop_rate: float, bias: bool) -> None:
    network = Net()
    network.fc = nn.Linear(8, 3, bias=bias)
    images = torch.randn(2, 3, 16, 16)
    before = network.eval()(images)
    model = FinetuneClassifier(network, num_classes=3, drop_rate=drop_rate)

    assert torch.equal(model.eval()(images), before)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save(Net(width=4).state_dict(), tmp_path / "net.pth")

    with pytest.raises(ValueError, match=r"0\.0%"):
        FinetuneClassifier(Net(), num_classes=3, weights=str(tmp_path / "net.pth"))


def test_reset_classifier_gives_a_new_head() -> None:
    model = FinetuneClassifier(Net(), num_classes=3)
    trainer().fit(model, digits())
    model.reset_classifier(5)
    run = trainer()
    run.fit(model, digits(digits=[0, 1, 2, 3, 4]))

    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 5)
    assert model.classes == ["0", "1", "2", "3", "4"]


def test_data_of_other_classes_is_refused() -> None:
    model = FinetuneClassifier(Net(), num_classes=3)

    with pytest.raises(ValueError, match=r"The data has 2 classes .*num_classes=3"):
        trainer().fit(model, digits(digits=[0, 1]))


def test_data_with_other_class_names_is_not_evaluated() -> None:
    model = FinetuneClassifier(Net(), num_classes=3)
    run = trainer()
    run.fit(model, digits())

    with pytest.raises(ValueError, match=r"'1', '7', '9'\).*'4', '7', '9'\).*it lacks '4'"):
        run.validate(model, digits(digits=[1, 7, 9]), verbose=False)


BAD: dict[str, Any] = {
    "num_classes": 1,
    "drop_rate": 1.0,
    "label_smoothing": -0.1,
    "lr": 0.0,
    "backbone_lr_ratio": 0.0,
    "layer_decay": 1.5,
    "weight_decay": -1.0,
    "mixup_alpha": -1.0,
    "min_match": 2.0,
    "class_weights": [1.0, -1.0],
}


def test_all_bad_arguments_are_named_at_once() -> None:
    with pytest.raises(ValueError) as refusal:  # noqa: PT011  (each argument is looked for below)
        FinetuneClassifier(Net(), **{"num_classes": 3, **BAD})

    assert [name for name in BAD if f"`{name}`" not in str(refusal.value)] == []


class Custom(FinetuneClassifier):
    """Each small method replaced."""

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        return super().loss(logits, target) * 0 + logits.sum() * 0 + 42

    def metrics(self, num_classes: int, prefix: str) -> MetricCollection:
        return MetricCollection({"spec": MulticlassSpecificity(num_classes)}, prefix=prefix)

    def make_head(self, in_features: int, num_classes: int) -> nn.Module:
        return nn.Sequential(nn.LayerNorm(in_features), nn.Linear(in_features, num_classes))

    def make_optimizer(self, groups: list[dict[str, Any]]) -> Optimizer:
        return SGD(groups, momentum=0.5)


def test_loss_metrics_head_and_optimizer_are_one_method_each() -> None:
    model = Custom(Net(), num_classes=3)
    run = trainer()
    run.fit(model, digits())

    assert run.callback_metrics["train/loss"] == 42
    assert "val/spec" in run.callback_metrics
    assert "val/acc" not in run.callback_metrics
    assert isinstance(model.get_classifier()[0], nn.LayerNorm)
    assert run.optimizers[0].param_groups[0]["momentum"] == 0.5


def test_a_new_head_for_other_classes_is_of_the_same_kind() -> None:
    mlp, custom = FinetuneClassifier(Net(), num_classes=3, head="mlp"), Custom(Net(), num_classes=3)
    kinds = [[type(layer) for layer in model.get_classifier()] for model in (mlp, custom)]
    mlp.reset_classifier(5)
    custom.reset_classifier(5)

    assert [[type(layer) for layer in m.get_classifier()] for m in (mlp, custom)] == kinds


def test_the_default_cosine_needs_a_length() -> None:
    endless = trainer(max_epochs=-1, limit_train_batches=None)

    with pytest.raises(ValueError, match="needs the length of the run"):
        endless.fit(FinetuneClassifier(Net(), num_classes=3), digits())


@pytest.mark.filterwarnings("ignore:The network")
def test_predict_image_leaves_the_modes_as_they_were() -> None:
    model = FinetuneClassifier(Net(), num_classes=3).train()
    model.backbone.body.eval()
    model.predict_image(Image.new("L", (20, 20)))

    assert model.training
    assert not model.backbone.body[1].training


def test_channels_last_gives_the_same_logits_and_keeps_the_layout() -> None:
    images = torch.rand(2, 3, 32, 32)
    torch.manual_seed(0)
    plain = FinetuneClassifier("timm/test_resnet", num_classes=3).eval()
    torch.manual_seed(0)
    last = FinetuneClassifier("timm/test_resnet", num_classes=3, channels_last=True).eval()

    weights = [p for p in last.backbone.parameters() if p.ndim == 4 and p.shape[1] > 1]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)
    torch.testing.assert_close(last(images), plain(images))


def test_compile_leaves_the_names_as_they_are() -> None:
    plain = FinetuneClassifier("timm/test_resnet", num_classes=3)
    compiled = FinetuneClassifier("timm/test_resnet", num_classes=3, compile=True)

    assert list(compiled.state_dict()) == list(plain.state_dict())
    assert compiled.blocks == plain.blocks

"""Users' own networks, of every shape: with a classifier, wherever it is, and without one."""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_finetune import FinetuneClassifier, list_blocks
from lit_finetune.callbacks import FreezeUnfreezeCallback
from lit_finetune.heads.feature_head import append_head, features_of
from lit_finetune.heads.replace import replace_head
from lit_finetune.images.data_config import DataConfig
from lit_finetune.modules.dry_run import init_lazy_layers

SMALL = {"image_size": [16, 16], "resize_size": 16}


class Net(nn.Module):
    """Two convolutions and what is given; pictures of 16 by 16."""

    data_config = SMALL

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Any:
        return self.end(self.conv2(self.conv1(x).relu()).relu())

    def end(self, x: Tensor) -> Any:
        return x


class Pooled(Net):
    def end(self, x: Tensor) -> Any:
        return self.classify(x.mean((2, 3)))

    def classify(self, x: Tensor) -> Tensor:
        return self.fc(x)


class Normed(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(nn.functional.normalize(input))


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.scores = nn.LayerNorm(8), nn.Linear(8, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(self.norm(x))


class TwoNames(Pooled):
    """The same layer under two names, of which only the second is called."""

    def __init__(self) -> None:
        super().__init__(fc=nn.Linear(8, 5))
        self.classifier = self.fc

    def classify(self, x: Tensor) -> Tensor:
        return self.classifier(x)


class Convolutional(Net):
    def __init__(self) -> None:
        super().__init__(scores=nn.Conv2d(8, 5, 1))

    def end(self, x: Tensor) -> Tensor:
        return self.scores(x).mean((2, 3))


class Tokens(Net):
    def end(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


class ChannelsLast(Net):
    def end(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


class Several(Net):
    def end(self, x: Tensor) -> dict[str, Tensor]:
        return {"fine": x[:, :2], "coarse": x}


class Vector(Net):
    def end(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def nested() -> nn.Module:
    inner = OrderedDict(drop=nn.Dropout(0.1), last=nn.Sequential(nn.ReLU(), nn.Linear(8, 5)))
    return Pooled(fc=nn.Sequential(inner))


def in_sequence() -> nn.Module:
    layers = [nn.Conv2d(3, 8, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(8, 5))


def lazy() -> nn.Module:
    layers = [nn.LazyConv2d(8, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.LazyLinear(5))


WITH_A_HEAD: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "in a sequence": (in_sequence, "4"),
    "nested": (nested, "fc.last.1"),
    "two names": (TwoNames, "fc"),
    "a class of its own": (lambda: Pooled(fc=Normed(8, 5)), "fc"),
    "wrapped, without a bias": (lambda: Pooled(fc=Wrapped()), "fc.scores"),
    "without a bias": (lambda: Pooled(fc=nn.Linear(8, 5, bias=False)), "fc"),
    "a 1x1 convolution": (Convolutional, "scores"),
    "lazy": (lazy, "4"),
}
WITHOUT_A_HEAD: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a vector": (Vector, "vector"),
    "a map": (Net, "channels_first"),
    "a map, channels last": (ChannelsLast, "channels_last"),
    "tokens": (Tokens, "tokens"),
    "several maps": (Several, "channels_first"),
}
ALL = {name: build for name, (build, _) in (WITH_A_HEAD | WITHOUT_A_HEAD).items()}
every_network = pytest.mark.parametrize("build", ALL.values(), ids=ALL)


def pictures(number: int = 2) -> Tensor:
    return torch.randn(number, 3, 16, 16)


@pytest.mark.parametrize(("build", "head"), WITH_A_HEAD.values(), ids=WITH_A_HEAD)
def test_the_head_is_found_and_replaced(build: Callable[[], nn.Module], head: str) -> None:
    model = FinetuneClassifier(build(), num_classes=3)

    assert model.head_name == head
    assert model(pictures()).shape == (2, 3)


@pytest.mark.parametrize(("build", "layout"), WITHOUT_A_HEAD.values(), ids=WITHOUT_A_HEAD)
def test_features_are_pooled_and_a_head_is_appended(
    build: Callable[[], nn.Module], layout: str
) -> None:
    network = build().eval()
    model = FinetuneClassifier(network, num_classes=3).eval()
    x = pictures()
    means = {"vector": (), "tokens": (1,), "channels_first": (2, 3), "channels_last": (1, 2)}
    features = features_of(network(x))
    expected = features if layout == "vector" else features.mean(means[layout])

    assert model.head_name == "head"
    assert model(x).shape == (2, 3)
    assert torch.equal(model.forward_features(x), expected)
    assert expected.shape == (2, 8)


@every_network
def test_every_parameter_is_in_one_block_and_the_head_is_the_last(
    build: Callable[[], nn.Module],
) -> None:
    model = FinetuneClassifier(build(), num_classes=3)
    inside = [name for block in model.blocks for name in block.parameters]

    assert sorted(inside) == sorted(name for name, _ in model.named_parameters())
    assert model.blocks[-1].name == "head"
    assert any(name.startswith(f"backbone.{model.head_name}.") for name in inside[-2:])
    assert list_blocks(model.backbone, model.head_name)[0].parameters[0].endswith("weight")


@pytest.mark.slow
@every_network
def test_a_training_in_two_phases_moves_the_head_and_then_what_is_before_it(
    build: Callable[[], nn.Module],
) -> None:
    model = FinetuneClassifier(build(), num_classes=3, head="mlp", lr=0.05)
    before = model.blocks[-2]
    start = {name: value.clone() for name, value in model.named_parameters()}
    data = TensorDataset(pictures(6), torch.arange(6) % 3)
    options: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    schedule = FreezeUnfreezeCallback({0: "head", 1: before.name})
    Trainer(max_epochs=2, callbacks=[schedule], **options).fit(
        model, DataLoader(data, batch_size=3)
    )

    moved = {n for n, value in model.named_parameters() if not torch.equal(value, start[n])}
    assert moved == {*before.parameters, *model.blocks[-1].parameters}


@every_network
def test_a_checkpoint_is_loaded_into_the_same_network_again(
    build: Callable[[], nn.Module], tmp_path: Path
) -> None:
    model = FinetuneClassifier(build(), num_classes=3).eval()
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(model)
    model.trainer = trainer
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    again = FinetuneClassifier.load_from_checkpoint(tmp_path / "model.ckpt", backbone=build())

    x = pictures()
    assert torch.equal(again.eval()(x), model(x))


def test_a_layer_with_two_names_is_replaced_under_both() -> None:
    network = TwoNames()
    replace_head(network, 3)
    assert network.fc is network.classifier


def test_features_can_be_asked_for_where_a_layer_looks_like_a_classifier(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    model = FinetuneClassifier(Pooled(fc=nn.Linear(8, 6)), num_classes=3, head_name="")

    assert model.get_classifier().in_features == 6
    assert model.backbone.features.fc.out_features == 6
    assert "a new head, `head`, for 3 classes, on its vector features (2, 6)" in caplog.text


def test_of_several_outputs_the_last_is_taken_and_that_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    FinetuneClassifier(Several(), num_classes=3)
    assert "channels-first features (2, 8, 4, 4), the last of 2 outputs" in caplog.text


def test_feature_extractors_of_torchvision_and_timm_get_a_head() -> None:
    timm = pytest.importorskip("timm")
    network = torchvision.models.squeezenet1_1()
    extractor = torchvision.models.feature_extraction.create_feature_extractor(
        network, ["features.5", "features.12"]
    )
    assert FinetuneClassifier(extractor, num_classes=3).get_classifier().in_features == 512
    maps = timm.create_model("test_resnet", features_only=True)
    assert FinetuneClassifier(maps, num_classes=3)(torch.randn(2, 3, 64, 64)).shape == (2, 3)
    kwargs = {"num_classes": 0}
    model = FinetuneClassifier("timm/test_vit", num_classes=3, backbone_kwargs=kwargs)
    assert model.head_name == "head"
    cut = nn.Sequential(*list(torchvision.models.resnet18().children())[:-1])
    assert FinetuneClassifier(cut, num_classes=3).get_classifier().in_features == 512


def test_heads_of_every_kind_go_on_features() -> None:
    own = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 3))
    for head in ("linear", "mlp", own, lambda features, classes: nn.Linear(features, classes)):
        model = FinetuneClassifier(Tokens(), num_classes=3, head=head).eval()
        assert model(pictures()).shape == (2, 3)
    model.reset_classifier(4)
    assert model(pictures()).shape == (2, 4)


def test_pictures_that_are_not_square_are_told_by_their_proportions() -> None:
    wide = DataConfig(image_size=(16, 32), resize_size=16)
    assert append_head(Net(), wide)[0].pool.layout == "channels_first"
    assert append_head(ChannelsLast(), wide)[0].pool.layout == "channels_last"


def test_one_channel_goes_in_where_the_first_layer_takes_one() -> None:
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU())
    assert FinetuneClassifier(network, num_classes=3)(torch.zeros(2, 1, 16, 16)).shape == (2, 3)


def test_a_network_says_what_pictures_it_expects() -> None:
    assert FinetuneClassifier(Vector(), num_classes=3).data_config.image_size == (16, 16)
    network = Vector()
    network.data_config = DataConfig(image_size=(8, 8), resize_size=8)
    assert FinetuneClassifier(network, num_classes=3).data_config.image_size == (8, 8)


def test_lazy_layers_have_the_size_of_the_networks_pictures() -> None:
    class Flat(Net):
        def end(self, x: Tensor) -> Tensor:
            return self.fc(x.flatten(1))

    model = FinetuneClassifier(Flat(fc=nn.LazyLinear(5)), num_classes=3)
    assert model.get_classifier().in_features == 8 * 4 * 4


def test_lazy_layers_that_cannot_be_given_a_size_are_an_error() -> None:
    fixed = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.LazyLinear(2))
    with pytest.raises(
        ValueError, match=r"had to be run to learn.*lazy.*\(3, 224, 224\).*data_con"
    ):
        FinetuneClassifier(fixed, num_classes=3)
    with pytest.raises(ValueError, match=r"does not run its lazy layers.*: fc.weight, fc.bias"):
        init_lazy_layers(Net(fc=nn.LazyLinear(2)), DataConfig(image_size=(16, 16), resize_size=16))


class Output(nn.Module):
    """A network that gives what it was made with."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor) -> Any:
        return self.output


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (torch.zeros(2, 3, 4, 4, 4), r"features of the shape \(2, 3, 4, 4, 4\)"),
        ("text", "returned a str, not features"),
        ([], "returned a list, not features"),
    ],
)
def test_an_output_that_is_no_features_is_an_error(output: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        append_head(Output(output), DataConfig())


def test_a_network_that_does_not_run_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"learn what features.*\(3, 224, 224\).*self.data_config"):
        FinetuneClassifier(nn.Sequential(nn.Conv2d(3, 8, 300), nn.ReLU()), num_classes=3)


def test_a_head_that_is_not_where_the_output_comes_from_is_an_error() -> None:
    class Aside(Net):
        """A layer beside the way from input to output."""

        def end(self, x: Tensor) -> Tensor:
            self.aside(x.mean((2, 3)))
            return x.mean((2, 3))

    model = FinetuneClassifier(Aside(aside=nn.Linear(8, 5)), num_classes=3)
    with pytest.raises(ValueError, match=r"shape \(2, 8\).*\(N, 3\).*`aside`.*head_name"):
        model(pictures())


def test_several_layers_that_could_be_the_classifier_are_listed() -> None:
    network = Pooled(age=nn.Linear(8, 3), sex=nn.Linear(8, 2))
    with pytest.raises(ValueError, match=r"age, sex.*head_name="):
        FinetuneClassifier(network, num_classes=3)


def test_a_network_of_transformers_without_a_head_says_how_to_append_one() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.ViTConfig(**sizes, intermediate_size=32)
    x = torch.zeros(2, 3, 224, 224)
    with pytest.raises(TypeError, match=r"BaseModelOutputWithPooling.*head_name="):
        FinetuneClassifier(transformers.ViTModel(config), num_classes=3)(x)
    model = FinetuneClassifier(transformers.ViTModel(config), num_classes=3, head_name="")
    assert model(x).shape == (2, 3)

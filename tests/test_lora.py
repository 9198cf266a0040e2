"""Adapters train in the place of a network's weights, which stand still to the last bit."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.hf_families import TINY_CONFIGS
from lit_finetune import FinetuneClassifier
from lit_finetune.blocks.adapter_layers import adapted_layers, is_adapter
from lit_finetune.blocks.block import list_blocks
from lit_finetune.callbacks import FreezeUnfreezeCallback
from lit_finetune.lora import Lora, add_lora, merge_adapters, read_lora

pytest.importorskip("peft")


class Stage(nn.Sequential):
    def __init__(self, width: int, out: int) -> None:
        super().__init__(nn.Conv2d(width, out, 3), nn.BatchNorm2d(out), nn.ReLU(), nn.Dropout(0.1))


class Net(nn.Module):
    """Three stages of convolution, norm and dropout, a linear layer and a head."""

    def __init__(self, num_classes: int = 2) -> None:
        super().__init__()
        self.stem, self.layer1, self.layer2 = Stage(3, 4), Stage(4, 6), Stage(6, 8)
        self.fc1, self.fc = nn.Linear(8, 8), nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(self.stem(x))).mean((2, 3))
        return self.fc(self.fc1(x).relu())


SMALL = Lora(r=2, dropout=0.1)
ADAPTED = ["layer1.0", "layer2.0", "fc1"]


def classifier(lora: Any = SMALL, **options: Any) -> FinetuneClassifier:
    torch.manual_seed(1)
    return FinetuneClassifier(Net(), num_classes=2, lora=lora, lr=0.05, **options)


def images() -> Tensor:
    return torch.rand(16, 3, 9, 9, generator=torch.Generator().manual_seed(0))


def loader(pictures: Tensor | None = None) -> DataLoader[Any]:
    pictures = images() if pictures is None else pictures
    return DataLoader(TensorDataset(pictures, torch.arange(len(pictures)) % 2), batch_size=4)


def fit(
    model: FinetuneClassifier, schedule: Any = None, data: Any = None, **options: Any
) -> Trainer:
    ckpt_path = options.pop("ckpt_path", None)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "accelerator": "cpu", "max_epochs": 2}
    trainer = Trainer(**{**quiet, **options})
    if schedule is not None:
        trainer.callbacks.insert(0, FreezeUnfreezeCallback(schedule))
    trainer.fit(model, data or loader(), ckpt_path=ckpt_path)
    return trainer


def snapshot(model: FinetuneClassifier) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.backbone.state_dict().items()}


def moved(model: FinetuneClassifier, schedule: Any = None, **options: Any) -> set[str]:
    """What a run changes of a network's tensors, the statistics too, by their names."""
    before = snapshot(model)
    fit(model, schedule, **options)
    return {name for name, value in snapshot(model).items() if not value.equal(before[name])}


def adapters(model: FinetuneClassifier) -> set[str]:
    layers = adapted_layers(model.backbone)
    return {name for name in model.backbone.state_dict() if is_adapter(name, layers)}


HEAD = {"fc.weight", "fc.bias"}


def test_a_network_gives_the_same_with_new_adapters() -> None:
    plain = classifier(lora=None)
    adapted = classifier()
    adapted.backbone.fc.load_state_dict(plain.backbone.fc.state_dict())
    assert adapted.eval()(images()).equal(plain.eval()(images()))


def test_adapters_stand_beside_all_layers_but_the_first_and_the_head() -> None:
    model = classifier()
    assert list(adapted_layers(model.backbone)) == ADAPTED
    assert len(adapters(model)) == 6


@pytest.mark.parametrize("schedule", [None, "full", {0: "all"}])
def test_head_and_adapters_train_and_nothing_else_moves(schedule: Any) -> None:
    model = classifier()
    assert moved(model, schedule) == HEAD | adapters(model)


def test_the_head_may_train_before_the_adapters() -> None:
    model = classifier()
    schedule = {0: "head", 1: "all"}
    assert moved(model, schedule, max_epochs=1, fast_dev_run=4) == HEAD
    model = classifier()
    assert moved(model, schedule) == HEAD | adapters(model)


def test_the_adapters_of_a_block_train_by_its_name() -> None:
    model = classifier()
    expected = {f"layer2.0.lora_{x}.default.weight" for x in "AB"}
    assert moved(model, {0: "head", 1: "layer2"}) == HEAD | expected


def test_blocks_keep_their_names_and_hold_every_parameter_once() -> None:
    model, plain = classifier(), classifier(lora=None)
    assert [block.name for block in model.blocks] == [block.name for block in plain.blocks]
    names = [name for block in model.blocks for name in block.parameters]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    free = {name for block in model.blocks for name in block.free}
    assert free == {name for name, p in model.named_parameters() if p.requires_grad}
    assert free == {f"backbone.{name}" for name in HEAD | adapters(model)}
    assert list_blocks(model) == model.blocks


def test_groups_bear_the_names_of_the_blocks_and_hold_no_base_weights() -> None:
    trainer = fit(classifier(), max_epochs=1)
    groups = {g["name"]: len(g["params"]) for g in trainer.optimizers[0].param_groups}
    assert groups == {
        "head/decay": 1,
        "head/no_decay": 1,
        "fc1/decay": 2,
        "layer2/decay": 2,
        "layer1/decay": 2,
    }


@pytest.mark.parametrize("selector", ["stem", "norms", "layer1.1", "re:.*base_layer.*"])
def test_base_weights_cannot_be_scheduled(selector: str) -> None:
    with pytest.raises(ValueError, match=f"{selector[:4]}.* matches only base weights"):
        fit(classifier(), {0: "head", 1: selector})


def test_norms_of_frozen_weights_cannot_train_beside_adapters() -> None:
    trainer = Trainer(max_epochs=1, logger=False, accelerator="cpu")
    trainer.callbacks.append(FreezeUnfreezeCallback("full", train_bn=True))
    with pytest.raises(ValueError, match=r"`train_bn` .* adapters"):
        trainer.fit(classifier(), loader())


@pytest.mark.parametrize("schedule", [None, {0: "head", 1: "layer2", 2: "all"}])
def test_a_resumed_run_ends_like_an_unbroken_one(tmp_path: Path, schedule: Any) -> None:
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    model = classifier()
    options = {"max_epochs": 3, "enable_checkpointing": True}
    torch.manual_seed(2)
    fit(model, schedule, callbacks=[keep], **options)
    for epoch in (0, 1):
        again = classifier()
        fit(again, schedule, ckpt_path=tmp_path / f"epoch={epoch}.ckpt", **options)
        ended = again.state_dict()
        assert all(value.equal(ended[name]) for name, value in model.state_dict().items())


def test_a_checkpoint_is_plain_data_and_brings_the_adapters_back(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    pictures = torch.rand(8, 3, 32, 32)
    lora = Lora(r=2, target=["qkv"])
    model = FinetuneClassifier("timm/test_vit", num_classes=2, image_size=32, lora=lora, lr=0.1)
    fit(model, data=loader(pictures)).save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["lora"]["target"] == ["qkv"]
    again = FinetuneClassifier.load_from_checkpoint(tmp_path / "a.ckpt")
    assert again.eval()(pictures).equal(model.eval()(pictures))
    assert adapters(again) == adapters(model)


# Merged, W + s B A is rounded once; beside each other, W x and s B (A x) are, each by itself.
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}


@pytest.mark.parametrize(
    "name", ["timm/test_vit", "timm/test_resnet", "timm/test_convnext", "squeezenet1_1"]
)
def test_merged_a_network_is_the_plain_one_with_the_same_logits(name: str) -> None:
    pytest.importorskip("timm")
    options: dict[str, Any] = {"num_classes": 2, "image_size": 64}
    plain = FinetuneClassifier(name, **options).backbone
    model = FinetuneClassifier(name, **options, lora={"r": 2, "alpha": 4}).eval()
    for parameter in adapted_parameters(model):
        nn.init.normal_(parameter, std=0.1)
    pictures = torch.rand(2, 3, 64, 64)
    before, state = model(pictures), snapshot(model)
    network = model.merge_lora()
    assert {n: v.shape for n, v in network.state_dict().items()} == {
        n: v.shape for n, v in plain.state_dict().items()
    }
    torch.testing.assert_close(network(pictures), before, **ROUNDING)
    assert (network(pictures) - plain.eval()(pictures)).abs().max() > 1e-3
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(value.equal(state[name]) for name, value in snapshot(model).items())
    plain.load_state_dict(network.state_dict())


def adapted_parameters(model: FinetuneClassifier) -> list[nn.Parameter]:
    names = adapters(model)
    return [p for name, p in model.backbone.named_parameters() if name in names]


@pytest.mark.parametrize(
    "name", ["timm/test_vit", "timm/test_resnet", "timm/test_convnext", "swin_t"]
)
def test_a_gradient_reaches_every_adapter(name: str) -> None:
    pytest.importorskip("timm")
    model = FinetuneClassifier(name, num_classes=2, image_size=64, lora={"r": 1}).train()
    for module in model.backbone.modules():
        if isinstance(module, nn.BatchNorm2d):  # some start at 0, and let no gradient through
            nn.init.ones_(module.weight)
    for parameter in adapted_parameters(model):
        nn.init.normal_(parameter, std=0.1)
    functional.cross_entropy(model(torch.rand(2, 3, 64, 64)), torch.tensor([0, 1])).backward()
    named = dict(model.backbone.named_parameters())
    silent = [name for name in adapters(model) if not named[name].grad.abs().sum() > 0]
    assert not silent
    assert len(adapters(model)) > 0


@pytest.mark.parametrize("kind", ["vit", "swin", "convnextv2", "mobilenet_v2"])
def test_networks_of_hugging_face_are_adapted_and_merged(kind: str) -> None:
    pytest.importorskip("transformers")
    options: dict[str, Any] = {"num_classes": 2, "backbone_kwargs": TINY_CONFIGS[kind]}
    plain = FinetuneClassifier(f"hf/{kind}", **options)
    model = FinetuneClassifier(f"hf/{kind}", **options, lora={"r": 2}).eval()
    for parameter in adapted_parameters(model):
        nn.init.normal_(parameter, std=0.1)
    pictures = torch.rand(2, 3, *model.data_config.image_size)
    network: Any = model.merge_lora()
    torch.testing.assert_close(network(pictures).logits, model(pictures), **ROUNDING)
    assert network.state_dict().keys() == plain.backbone.state_dict().keys()
    assert [block.name for block in model.blocks] == [block.name for block in plain.blocks]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (["fc1"], ["fc1"]),
        (["layer1"], ["layer1.0"]),
        (["layer*"], ["layer1.0", "layer2.0"]),
        (["re:layer[12]\\.0", "fc1"], ADAPTED),
        (["stem"], ["stem.0"]),
    ],
)
def test_a_target_names_layers_or_what_they_are_in(target: list[str], expected: list[str]) -> None:
    model = classifier({"target": target, "r": 1})
    assert list(adapted_layers(model.backbone)) == expected


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"r": 0, "dropout": 1}, r"`r` is a rank from 1 on, but got 0; `dropout` is a probability"),
        ({"alpha": 0}, "`alpha` must be positive and finite, but got 0"),
        ({"target": "qkv"}, "`target` is a list of patterns, but got 'qkv'"),
        ({"target": []}, "`target` is a list"),
        ({"rank": 8}, "`lora` has no 'rank'.*It has: r, alpha"),
        ({"target": ["fc1", "layer3"]}, r"(?s)'layer3' matches no layer.*Did you mean 'layer"),
        ({"target": ["fc"]}, "`fc`: it is in the head, which trains itself"),
        ({"target": ["layer1.1"]}, "`layer1.1`: it is of type BatchNorm2d"),
    ],
)
def test_what_cannot_be_is_refused(lora: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classifier(lora)


class Passing(nn.Module):
    """Layers that an adapter beside them would do nothing for, or the wrong thing."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.grouped = nn.Conv2d(8, 8, 3, groups=8)
        self.dilated = nn.Conv2d(8, 8, 3, dilation=2)
        self.mirrored = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.functional, self.unused = nn.Linear(8, 8), nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.good, self.head = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mirrored(self.dilated(self.grouped(self.stem(x)))).mean((2, 3))
        x = functional.linear(self.normed(x), self.functional.weight)[:, None]
        return self.head(self.good(self.encoder(self.attention(x, x, x)[0]))[:, 0])


def test_only_layers_that_an_adapter_serves_get_one() -> None:
    model = FinetuneClassifier(Passing(), num_classes=2, head_name="head", lora={"r": 1})
    assert list(adapted_layers(model.backbone)) == ["good"]


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("grouped", "a grouped, a dilated"),
        ("dilated", "a grouped, a dilated"),
        ("mirrored", "otherwise padded"),
        ("normed", "may use its weight otherwise"),
        ("functional", "the network uses its weight and never calls it"),
        ("unused", "never calls it"),
        ("attention", "`attention`: the adapter for `nn.MultiheadAttention` would move"),
        ("encoder", "passes its layers by in evaluation"),
    ],
)
def test_a_target_that_an_adapter_would_not_serve_is_refused(target: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"'{target}' matches no layer.*{reason}"):
        FinetuneClassifier(
            Passing(), num_classes=2, head_name="head", lora={"target": [target], "r": 1}
        )


def test_a_file_is_loaded_before_there_are_adapters(tmp_path: Path) -> None:
    saved = Net(num_classes=5)
    torch.save({"state_dict": saved.state_dict()}, tmp_path / "a.pth")
    model = classifier(weights=str(tmp_path / "a.pth"))
    assert model.backbone.layer1[0].base_layer.weight.equal(saved.layer1[0].weight)
    assert model.load_report is not None
    assert model.load_report.share == 1.0


def test_adapters_are_not_put_upon_adapters() -> None:
    with pytest.raises(ValueError, match="Net has adapters already"):
        FinetuneClassifier(classifier().backbone, num_classes=2, lora={"r": 1})


def test_a_network_without_adapters_is_not_merged() -> None:
    with pytest.raises(ValueError, match="Net has no adapters"):
        merge_adapters(Net())


def test_a_new_head_trains_beside_the_adapters() -> None:
    model = classifier()
    model.reset_classifier(2)
    assert moved(model) == HEAD | adapters(model)


def test_adapters_of_a_users_own_take_part_in_any_module() -> None:
    network = Net()
    layers = add_lora(network, Lora(r=1), head_name="fc", data_config=classifier().data_config)
    assert list(layers) == ADAPTED
    assert [block.name for block in list_blocks(network)] == [b.name for b in list_blocks(Net())]


def test_without_peft_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lit-finetune\[peft\]'"):
        classifier()


def test_adapters_are_read_as_they_are_written() -> None:
    assert read_lora({"r": 4, "alpha": 8}) == read_lora(Lora(r=4, alpha=8)) == Lora(r=4, alpha=8)
    assert read_lora(None) is None

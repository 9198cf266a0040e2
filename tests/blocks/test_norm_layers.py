"""Norms or biases alone: what the words select, and that nothing else moves."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_finetune import FinetuneClassifier
from lit_finetune.blocks.block import list_blocks
from lit_finetune.blocks.norm_layers import is_norm
from lit_finetune.callbacks import FreezeUnfreezeCallback
from lit_finetune.schedules.phases import parse_schedule
from lit_finetune.schedules.plan import make_plan
from lit_finetune.schedules.selectors import select


class Stage(nn.Sequential):
    def __init__(self, width: int, out: int) -> None:
        super().__init__(nn.Conv2d(width, out, 3), nn.BatchNorm2d(out), nn.ReLU(), nn.Dropout(0.1))


class Net(nn.Module):
    """Two stages of convolution, norm and dropout, a norm that is part of the second, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stage1, self.stage2 = Stage(3, 4), Stage(4, 8)
        self.norm, self.fc = nn.LayerNorm(8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.stage2(self.stage1(x)).mean((2, 3))))


def loader() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(16, 3, 8, 8, generator=generator)
    return DataLoader(TensorDataset(images, torch.arange(16) % 2), batch_size=4)


def fit(model: FinetuneClassifier, schedule: Any, ckpt_path: Path | None = None, **options: Any):
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"enable_checkpointing": False, "max_epochs": 2, **options},
    )
    trainer.callbacks.insert(0, FreezeUnfreezeCallback(schedule))
    trainer.fit(model, loader(), ckpt_path=ckpt_path)
    return trainer


def moved(model: FinetuneClassifier, schedule: Any, **options: Any) -> set[str]:
    """What a run changes of a network's tensors, the statistics too, by their names."""
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    fit(model, schedule, **options)
    state = model.backbone.state_dict()
    return {name for name, value in state.items() if not value.equal(before[name])}


STATISTICS = {
    f"stage{i}.1.{name}"
    for i in (1, 2)
    for name in ("running_mean", "running_var", "num_batches_tracked")
}
HEAD = {"fc.weight", "fc.bias"}


def test_norms_are_the_parameters_of_all_normalisation_layers() -> None:
    chosen = select("norms", list_blocks(Net()))
    assert chosen == tuple(
        f"{layer}.{name}"
        for layer in ("stage1.1", "stage2.1", "norm")
        for name in ("weight", "bias")
    )


def test_biases_are_all_biases() -> None:
    names = [name for name, _ in Net().named_parameters() if name.endswith("bias")]
    assert select("biases", list_blocks(Net())) == tuple(names)


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("stage1/norms", ("stage1.1.weight", "stage1.1.bias")),
        ("stage2/biases", ("stage2.0.bias", "stage2.1.bias", "norm.bias")),
        ("re:stage..1/norms", select("re:stage..1", list_blocks(Net()))),
        (":1/biases", ("stage1.0.bias", "stage1.1.bias")),
        ("all/norms", select("norms", list_blocks(Net()))),
    ],
)
def test_a_part_may_stand_before_the_kind(selector: str, expected: tuple[str, ...]) -> None:
    assert select(selector, list_blocks(Net())) == expected


def test_a_module_of_that_name_comes_first() -> None:
    network = nn.ModuleDict({"conv": nn.Conv2d(3, 4, 3), "norms": nn.Linear(4, 4)})
    network["out"] = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    network["fc"] = nn.Linear(4, 2)
    blocks = list_blocks(network)
    assert select("norms", blocks) == ("norms.weight", "norms.bias")
    assert select("all/norms", blocks) == ("out.1.weight", "out.1.bias")


@pytest.mark.parametrize("selector", ["norms", "0/norms", "biases", "nothing/biases"])
def test_a_kind_of_which_there_is_none_is_an_error(selector: str) -> None:
    network = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False))
    with pytest.raises(ValueError, match=r"matches nothing.*The blocks are: 0, head"):
        select(selector, list_blocks(network))


def test_norms_of_libraries_are_known_by_their_class() -> None:
    timm_layers = pytest.importorskip("timm.layers")
    assert is_norm(timm_layers.RmsNorm(4))
    assert is_norm(timm_layers.BatchNormAct2d(4))
    assert not is_norm(timm_layers.Mlp(4))


@pytest.mark.parametrize("name", ["RmsNorm", "SimpleNorm2d", "EvoNorm2dS0", "GroupNorm1"])
def test_norms_of_timm_are_known(name: str) -> None:
    layers = pytest.importorskip("timm.layers")
    if not hasattr(layers, name):
        pytest.skip(f"this timm has no {name}")
    assert is_norm(getattr(layers, name)(8))


@pytest.mark.parametrize("name", ["ConvNormAct", "GlobalResponseNormMlp", "NormMlpClassifierHead"])
def test_what_merely_holds_a_norm_is_none(name: str) -> None:
    layers = pytest.importorskip("timm.layers")
    assert not is_norm(getattr(layers, name)(8, 8))


def test_the_rest_of_a_block_may_follow_its_norms() -> None:
    schedule = parse_schedule({0: ["head", "norms"], 1: "stage2", 2: "all"})
    plan = make_plan(schedule, list_blocks(Net()), max_epochs=3)
    assert plan.phases[1].parameters == ("stage2.0.weight", "stage2.0.bias")
    assert plan.phases[2].parameters == ("stage1.0.weight", "stage1.0.bias")


def test_norms_that_train_already_are_an_error() -> None:
    schedule = parse_schedule({0: ["head", "norms"], 1: "stage2/norms"})
    with pytest.raises(ValueError, match="'stage2/norms' overlaps: all of it trains from epoch 0"):
        make_plan(schedule, list_blocks(Net()), max_epochs=2)


@pytest.mark.parametrize("schedule", ["norm_only", {0: ["head", "norms"]}])
def test_norms_train_with_their_statistics_and_nothing_else_does(schedule: Any) -> None:
    model = FinetuneClassifier(Net(), num_classes=2, lr=0.1)
    norms = {name for name in model.backbone.state_dict() if ".1." in name or name[:4] == "norm"}
    assert moved(model, schedule) == norms | HEAD
    assert norms > STATISTICS


@pytest.mark.parametrize("schedule", ["bitfit", {0: ["head", "biases"]}])
def test_biases_train_and_statistics_stand_still(schedule: Any) -> None:
    model = FinetuneClassifier(Net(), num_classes=2, lr=0.1)
    biases = {name for name in model.backbone.state_dict() if name.endswith("bias")}
    assert moved(model, schedule) == biases | HEAD


@pytest.mark.parametrize(("strategy", "share"), [("norm_only", "norm"), ("bitfit", "bias")])
def test_a_transformer_trains_its_norms_or_biases(strategy: str, share: str) -> None:
    pytest.importorskip("timm")
    model = FinetuneClassifier("timm/test_vit", num_classes=2, lr=0.1)
    model.backbone.set_input_size((8, 8), patch_size=4)
    names = set(model.backbone.state_dict())
    expected = {name for name in names if share in name} | {"head.weight", "head.bias"}
    assert moved(model, strategy, max_epochs=1) == expected


def test_what_joins_later_joins_as_groups_of_its_own() -> None:
    model = FinetuneClassifier(Net(), num_classes=2, lr=0.1)
    trainer = fit(model, {0: ["head", "biases"], 1: "stage2"})
    groups = {g["name"]: len(g["params"]) for g in trainer.optimizers[0].param_groups}
    assert groups == {
        "head/decay": 1,
        "head/no_decay": 1,
        "stage2/no_decay": 3,
        "stage1/no_decay": 2,
        "stage2/decay": 1,
        "stage2/no_decay#2": 2,
    }


@pytest.mark.parametrize("schedule", [{0: ["head", "norms"], 2: "all"}, {0: "head", 1: "biases"}])
def test_a_resumed_run_ends_like_an_unbroken_one(tmp_path: Path, schedule: Any) -> None:
    torch.manual_seed(1)
    model = FinetuneClassifier(Net(), num_classes=2, lr=0.1)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    options = {"max_epochs": 4, "enable_checkpointing": True, "callbacks": [keep]}
    torch.manual_seed(2)
    fit(model, schedule, **options)
    for epoch in (0, 1, 2):
        again = FinetuneClassifier(Net(), num_classes=2, lr=0.1)
        again.load_state_dict(start)
        fit(again, schedule, ckpt_path=tmp_path / f"epoch={epoch}.ckpt", max_epochs=4)
        ended = again.state_dict()
        assert all(value.equal(ended[name]) for name, value in model.state_dict().items())

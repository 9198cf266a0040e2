from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
import torchvision.models
from torch import nn

from lit_finetune.blocks.block import list_blocks
from lit_finetune.optim.param_groups import ParamGroup, lr_ratios, make_param_groups, no_decay_names


def timm_model(name: str) -> nn.Module:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        return timm.create_model(name, num_classes=3)


def torchvision_model(name: str) -> nn.Module:
    with torch.device("meta"):
        return torchvision.models.get_model(name, num_classes=3)


class Holder(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.backbone = network


MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: torchvision_model("resnet18"),
    "squeezenet1_1": lambda: torchvision_model("squeezenet1_1"),
    "vit_b_16": lambda: torchvision_model("vit_b_16"),
    "timm resnet": lambda: timm_model("test_resnet"),
    "timm vit": lambda: timm_model("test_vit"),
    "timm vit in a holder": lambda: Holder(timm_model("test_vit")),
    "three linears": lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)),
    "one linear": lambda: nn.Linear(2, 2),
}
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def groups_of(model: nn.Module, **rates: float | None) -> list[ParamGroup]:
    return make_param_groups(model, list_blocks(model), **rates)


def block_ratios(groups: list[ParamGroup]) -> list[float]:
    """The ratio of each block, from the head to the input."""
    return list({group.name.rpartition("/")[0]: group.lr_ratio for group in groups}.values())


@every_model
def test_every_parameter_is_in_one_group(make: Callable[[], nn.Module]) -> None:
    model = make()
    grouped = [name for group in groups_of(model) for name in group.parameters]
    assert sorted(grouped) == sorted(name for name, _ in model.named_parameters())


@every_model
def test_groups_have_names_of_their_own_that_say_block_and_kind(
    make: Callable[[], nn.Module],
) -> None:
    model = make()
    names = [group.name for group in groups_of(model)]
    blocks = {block.name for block in list_blocks(model)}
    assert len(set(names)) == len(names)
    assert {name.rpartition("/")[0] for name in names} == blocks
    assert {name.rpartition("/")[2] for name in names} <= {"decay", "no_decay"}


@every_model
def test_the_head_comes_first_with_the_whole_rate_and_no_group_is_empty(
    make: Callable[[], nn.Module],
) -> None:
    groups = groups_of(make(), backbone_lr_ratio=0.1)
    assert groups[0].name == "head/decay"
    assert groups[0].lr_ratio == 1.0
    assert all(group.parameters for group in groups)


@every_model
def test_weight_decay_spares_norms_and_biases_and_nothing_that_is_a_matrix(
    make: Callable[[], nn.Module],
) -> None:
    model = make()
    spared = {n for group in groups_of(model) if not group.decays for n in group.parameters}
    shapes = {name: p.shape for name, p in model.named_parameters()}
    vectors = {name for name, shape in shapes.items() if len(shape) <= 1}
    assert vectors <= spared
    assert all("embed" in name or "token" in name for name in spared - vectors)


def test_weight_decay_spares_what_a_timm_network_names_also_inside_a_holder() -> None:
    vit = timm_model("test_vit")
    named = vit.no_weight_decay() & {name for name, _ in vit.named_parameters()}
    assert "pos_embed" in named
    assert named <= no_decay_names(vit)
    assert {f"backbone.{name}" for name in named} <= no_decay_names(Holder(vit))


def test_the_rate_falls_from_block_to_block_by_the_layer_decay() -> None:
    ratios = block_ratios(groups_of(timm_model("test_vit"), backbone_lr_ratio=0.5, layer_decay=0.7))
    assert ratios[:2] == [1.0, 0.5]
    assert all(late * 0.7 == pytest.approx(early) for late, early in pairwise(ratios[1:]))


def test_without_layer_decay_the_whole_backbone_has_one_rate() -> None:
    ratios = block_ratios(groups_of(torchvision_model("resnet18"), backbone_lr_ratio=0.1))
    assert ratios == [1.0, 0.1, 0.1, 0.1, 0.1, 0.1]


@pytest.mark.parametrize(
    ("num_blocks", "expected"), [(0, []), (1, [1.0]), (2, [0.2, 1.0]), (3, [0.1, 0.2, 1.0])]
)
def test_there_is_a_ratio_for_each_block(num_blocks: int, expected: list[float]) -> None:
    assert lr_ratios(num_blocks, backbone_lr_ratio=0.2, layer_decay=0.5) == expected


def test_weight_decay_spares_norms_over_whole_pictures() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.LayerNorm([4, 6, 6]), nn.Flatten(), nn.Linear(144, 2)
    )

    assert no_decay_names(net) == {"0.bias", "1.weight", "1.bias", "3.bias"}

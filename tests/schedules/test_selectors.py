"""Every form of a selector, on a bare network, on what holds one, and on one from timm."""

import re
from typing import Any

import pytest
import torch
from torch import nn

from lit_finetune.blocks.block import Block, list_blocks
from lit_finetune.schedules.phases import Selector
from lit_finetune.schedules.selectors import select


class Unit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)


class Net(nn.Module):
    """Eight children, of which two have no parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
        self.layer1, self.layer2 = nn.Sequential(Unit(), Unit()), nn.Sequential(Unit(), Unit())
        self.layer3 = nn.Sequential(Unit(), Unit())
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 2)


class Holder(nn.Module):
    """What a LightningModule is to its network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.backbone = network


def flat() -> nn.Module:
    return Net()


def held() -> nn.Module:
    return Holder(Net())


def held_twice() -> nn.Module:
    return Holder(Holder(Net()))


PREFIXES = {flat: "", held: "backbone.", held_twice: "backbone.backbone."}
anywhere = pytest.mark.parametrize("make", PREFIXES, ids=lambda make: make.__name__)


def chosen(selector: Selector, model: nn.Module) -> set[str]:
    return set(select(selector, list_blocks(model)))


def inside(*modules: str) -> set[str]:
    """The names in `Net` of all parameters in these modules."""
    return {name for name, _ in Net().named_parameters() if name.startswith(modules)}


EVERYTHING = inside("")
FORMS: list[tuple[Selector, set[str]]] = [
    ("all", EVERYTHING),
    (" all ", EVERYTHING),
    ("stem", inside("conv1.", "bn1.")),
    ("layer2", inside("layer2.")),
    ("head", inside("fc.")),
    (0, inside("conv1.", "bn1.")),
    ("0", inside("conv1.", "bn1.")),
    (-1, inside("fc.")),
    ("-2", inside("layer3.")),
    ("-2:", inside("layer3.", "fc.")),
    (":2", inside("conv1.", "bn1.", "layer1.")),
    ("1:-1", inside("layer")),
    (":", EVERYTHING),
    ("fc", inside("fc.")),
    ("layer1.1", inside("layer1.1.")),
    ("layer1.1.norm", inside("layer1.1.norm.")),
    ("fc.bias", {"fc.bias"}),
    ("layer3.*", inside("layer3.")),
    ("layer?", inside("layer")),
    ("layer[12]", inside("layer1.", "layer2.")),
    ("*.bias", {name for name in EVERYTHING if name.endswith(".bias")}),
    ("layer*.norm.weight", {f"layer{i}.{j}.norm.weight" for i in (1, 2, 3) for j in (0, 1)}),
    ("re:layer[23]", inside("layer2.", "layer3.")),
    (r"re:layer\d\.0\..*", {n for n in EVERYTHING if n.startswith("layer") and n[7] == "0"}),
    ("re:bn.|fc", inside("bn1.", "fc.")),
    ("children[0]", inside("conv1.")),
    ("children[:4]", inside("conv1.", "bn1.", "layer1.")),
    ("children[:2]", inside("conv1.", "bn1.")),
    ("children[4:]", inside("layer2.", "layer3.", "fc.")),
    ("children[-1]", inside("fc.")),
    ("children[-3:]", inside("layer3.", "fc.")),
]


@anywhere
@pytest.mark.parametrize(("selector", "expected"), FORMS, ids=[str(form[0]) for form in FORMS])
def test_a_selector_means_the_same_in_a_network_and_in_what_holds_it(
    make: Any, selector: Selector, expected: set[str]
) -> None:
    assert chosen(selector, make()) == {PREFIXES[make] + name for name in expected}


@pytest.mark.parametrize(
    "selector", ["backbone.layer2", "backbone.layer2.*", r"re:backbone\.layer2"]
)
def test_the_full_names_of_a_held_network_work_as_well(selector: str) -> None:
    assert chosen(selector, held()) == {f"backbone.{name}" for name in inside("layer2.")}


def test_the_holder_itself_is_everything() -> None:
    assert chosen("backbone", held()) == {f"backbone.{name}" for name in EVERYTHING}


def test_names_come_in_the_networks_order_whatever_the_selector() -> None:
    order = [name for name, _ in Net().named_parameters()]
    found = select("re:.*", list_blocks(flat()))
    assert list(found) == order


@anywhere
def test_children_of_torchs_tutorial_are_those_that_the_network_lists(make: Any) -> None:
    for count in range(1, 9):
        expected = {
            f"{PREFIXES[make]}{name}.{p}"
            for name, child in list(Net().named_children())[:count]
            for p, _ in child.named_parameters()
        }
        assert chosen(f"children[:{count}]", make()) == expected


def numbered() -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(2, 2) if i % 2 == 0 else nn.ReLU() for i in range(7)))


@pytest.mark.parametrize("make", [numbered, lambda: Holder(numbered())])
def test_a_block_whose_name_is_a_number_is_found_by_it_and_an_index_stays_an_index(
    make: Any,
) -> None:
    def weights(selector: Selector) -> list[str]:
        return [name for name in chosen(selector, make()) if name.endswith("weight")]

    prefix = "" if isinstance(make(), nn.Sequential) else "backbone."
    assert weights("2") == [f"{prefix}2.weight"]
    assert weights(2) == [f"{prefix}4.weight"]
    assert weights("-1") == weights("head") == [f"{prefix}6.weight"]


@pytest.mark.parametrize(
    ("selector", "first", "count"),
    [
        ("stem", "conv1", None),
        ("layer3", "layer3", None),
        ("layer4.*", "layer4", None),
        ("-1", "fc", 2),
        ("head", "fc", 2),
        ("re:layer[34]\\..*bn\\d", "layer3.0.bn1", None),
        ("children[:4]", "conv1", None),
    ],
)
@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_the_forms_work_on_a_network_of_timm(
    prefix: str, selector: str, first: str, count: int | None
) -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        network = timm.create_model("test_resnet", num_classes=3)
    found = select(selector, list_blocks(Holder(network) if prefix else network))

    assert found[0].startswith(f"{prefix}{first}")
    assert count is None or len(found) == count


@anywhere
@pytest.mark.parametrize(
    ("selector", "near"),
    [
        ("layer4", "'layer3'"),
        ("laye1.0", "'layer1.0'"),
        ("hed", "'head'"),
        ("layer1.1.7", "'layer1.1."),
    ],
)
def test_a_selector_that_matches_nothing_names_the_nearest_and_the_blocks(
    make: Any, selector: str, near: str
) -> None:
    with pytest.raises(ValueError, match="matches nothing") as error:
        chosen(selector, make())
    hint = str(error.value).partition("Did you mean ")[2].partition("?")[0]
    assert near in hint
    assert len(set(hint.split(", "))) == len(hint.split(", ")), "each only once"
    assert "The blocks are: stem, layer1, layer2, layer3, head." in str(error.value)


@pytest.mark.parametrize("selector", ["", "layer9.*", "re:layer", "2:2", "children[3:3]", "all.*"])
def test_a_pattern_or_slice_that_matches_nothing_is_an_error(selector: str) -> None:
    with pytest.raises(ValueError, match="matches nothing"):
        chosen(selector, flat())


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        (5, "5 is out of range: there are 5, from 0 or back from -1"),
        ("-6", "'-6' is out of range"),
        ("children[8]", "there are 8"),
        ("children[x]", "no index or slice"),
        ("re:(", "no regular expression"),
    ],
)
def test_a_form_that_cannot_be_is_explained(selector: Selector, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        chosen(selector, flat())


def test_a_module_without_parameters_is_nothing_to_select() -> None:
    with pytest.raises(ValueError, match="'relu' matches nothing"):
        chosen("relu", flat())


def test_a_block_wins_over_a_module_of_its_name_elsewhere() -> None:
    blocks = [Block("a", ("a",), ("a.head.weight",)), Block("head", ("fc",), ("fc.weight",))]
    assert select("head", blocks) == ("fc.weight",)

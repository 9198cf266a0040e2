"""The blocks follow the order in which a network runs, whatever the order of registration."""

from collections import OrderedDict

import pytest
import torch
import torchvision
from torch import Tensor, nn

from lit_finetune import FinetuneClassifier
from lit_finetune.blocks.block import list_blocks
from lit_finetune.blocks.forward_order import record_parameter_order, trace_parameter_order

timm = pytest.importorskip("timm")


def conv(width_in: int, width_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width_in, width_out, 3), nn.BatchNorm2d(width_out), nn.ReLU())


class Backwards(nn.Module):
    """A network whose layers are registered from the last to the first."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 5)
        self.late, self.middle, self.early = conv(8, 8), conv(8, 8), conv(3, 8)
        self.scale = nn.Parameter(torch.ones(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.late(self.middle(self.early(x)) * self.scale)
        return self.fc(x.mean((2, 3)))


class Stages(nn.Module):
    """All embeddings first, then all stages, as in Twins."""

    def __init__(self) -> None:
        super().__init__()
        self.embeds = nn.ModuleList([nn.Conv2d(3, 8, 2, 2), nn.Conv2d(8, 8, 2, 2)])
        self.drops = nn.ModuleList([nn.Dropout(0.5), nn.Dropout(0.5)])
        layers = [nn.Conv2d(8, 8, 1) for _ in range(6)]
        self.stages = nn.ModuleList([nn.Sequential(*layers[:3]), nn.Sequential(*layers[3:])])
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        for embed, drop, stage in zip(self.embeds, self.drops, self.stages, strict=True):
            x = stage(drop(embed(x)))
        return self.head(x.mean((2, 3)))


class Rude(nn.Sequential):
    """A network that cannot run without data."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum().item() > 0 else x


def names(network: nn.Module) -> list[str]:
    return [block.name for block in list_blocks(network)]


IMAGES = torch.zeros(2, 3, 32, 32)


def test_parameters_are_told_in_the_order_of_their_first_use() -> None:
    order = trace_parameter_order(Backwards(), IMAGES)
    modules = list(dict.fromkeys(name.split(".")[0] for name in order))
    assert modules == ["early", "middle", "scale", "late", "fc"]


def test_a_run_leaves_nothing_behind() -> None:
    network = Backwards()
    network.middle.eval()
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    parameters, modes = [*network.parameters()], [m.training for m in network.modules()]
    chance = torch.random.get_rng_state()
    trace_parameter_order(network, IMAGES)
    assert all(one is other for one, other in zip(parameters, network.parameters(), strict=True))
    assert all(tensor.equal(state[name]) for name, tensor in network.state_dict().items())
    assert [module.training for module in network.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), chance)


def test_a_module_with_two_names_is_told_by_the_first_and_keeps_its_data() -> None:
    network = Backwards()
    network.again = network.fc
    assert trace_parameter_order(network, IMAGES)[-2:] == ("fc.weight", "fc.bias")
    assert not any(parameter.is_meta for parameter in network.parameters())


def test_the_blocks_of_your_own_network_follow_its_run() -> None:
    assert names(Backwards()) == ["stem", "late", "middle", "early", "head"]
    model = FinetuneClassifier(Backwards(), num_classes=2)
    assert [block.name for block in model.blocks] == ["early", "middle", "late", "head"]
    assert "backbone.scale" in model.blocks[1].parameters
    assert names(model) == [block.name for block in model.blocks]


def test_a_cover_around_a_network_changes_nothing() -> None:
    class Cover(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Backwards()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    model = FinetuneClassifier(Cover(), num_classes=2)
    assert model.head_name == "net.fc"
    assert [block.name for block in model.blocks] == ["early", "middle", "late", "head"]


def test_an_embedding_joins_its_stage() -> None:
    network = Stages()
    assert record_parameter_order(network, IMAGES)
    assert names(network) == ["stem", "stages.0", "stages.1", "head"]
    assert list_blocks(network)[2].modules[:1] == ("embeds.1",)


def test_a_network_that_needs_data_keeps_the_order_of_registration() -> None:
    network = Rude(OrderedDict(a=conv(3, 4), b=conv(4, 4), pool=nn.AdaptiveAvgPool2d(1)))
    network.append(nn.Flatten()).append(nn.Linear(4, 2))
    assert not record_parameter_order(network, IMAGES)
    model = FinetuneClassifier(network, num_classes=2)
    assert [block.name for block in model.blocks] == ["a", "b", "head"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("twins_svt_small", ["stem", "blocks.0", "blocks.1", "blocks.2", "blocks.3", "head"]),
        ("coat_lite_tiny", ["stem", *(f"serial_blocks{i}" for i in (1, 2, 3, 4)), "head"]),
        ("visformer_tiny", ["stem", "stage1", "stage2", "stage3", "head"]),
        ("vit_small_resnet26d_224", ["stem", *(f"blocks.{i}" for i in range(8)), "head"]),
    ],
)
def test_networks_of_timm_that_are_registered_by_kind_have_their_stages_as_blocks(
    name: str, expected: list[str]
) -> None:
    with torch.device("meta"):
        network = timm.create_model(name)
        images = torch.zeros(2, 3, 224, 224)
    assert names(network) == expected
    rank = {name: i for i, name in enumerate(trace_parameter_order(network, images))}
    begins = [min(rank[name] for name in block.parameters) for block in list_blocks(network)]
    assert begins == sorted(begins)


def test_a_run_does_not_change_the_blocks_of_a_network_that_is_registered_in_order() -> None:
    with torch.device("meta"):
        network = torchvision.models.vit_b_32(image_size=32)
    before = list_blocks(network)
    assert record_parameter_order(network, IMAGES)
    assert [block.name for block in list_blocks(network)] == [block.name for block in before]

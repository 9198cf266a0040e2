from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torchvision.models
from torch import Tensor, nn

from lit_finetune.blocks.block import Block, list_blocks

timm = pytest.importorskip("timm")


def names(model: nn.Module, head_name: str | None = None) -> list[str]:
    return [block.name for block in list_blocks(model, head_name)]


def block(model: nn.Module, name: str) -> Block:
    return next(block for block in list_blocks(model) if block.name == name)


def torchvision_model(name: str, **kwargs: object) -> nn.Module:
    with torch.device("meta"):
        return torchvision.models.get_model(name, **kwargs)


def timm_model(name: str) -> nn.Module:
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    with torch.device("meta"):
        return timm.create_model(name)


class Residual(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bn2(self.conv2(self.bn1(self.conv1(x))))


class CifarResNet(nn.Module):
    """Three stages and a layer called `linear`, as ResNet-20 for CIFAR-10 is often written."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(Residual(), Residual())
        self.layer2 = nn.Sequential(Residual(), Residual())
        self.layer3 = nn.Sequential(*(Residual() for _ in range(9)))
        self.linear = nn.Linear(4, 10)


class ThreeLinears(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)


class Holder(nn.Module):
    """What a LightningModule looks like: a network, a metric, a loss."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.metric, self.model, self.loss = nn.Identity(), network, nn.CrossEntropyLoss()


def small_features() -> nn.Module:
    features = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()]
    return nn.Sequential(
        OrderedDict(
            features=nn.Sequential(*features),
            pool=nn.AdaptiveAvgPool2d(1),
            classifier=nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(4, 2)),
        )
    )


TORCHVISION = [
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "maxvit_t",
    "mnasnet0_5",
    "mobilenet_v2",
    "resnet18",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
    "vgg11_bn",
    "vit_b_16",
]
TIMM = [
    "deit_tiny_distilled_patch16_224",
    "mobilenetv2_035",
    "resnet50d",
    "swin_tiny_patch4_window7_224",
    "test_byobnet",
    "test_coatnet",
    "test_convnext",
    "test_efficientnet",
    "test_nfnet",
    "test_resnet",
    "test_vit",
    "test_vit3",
]
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "cifar resnet": CifarResNet,
    "three linears": ThreeLinears,
    "small features": small_features,
    "held": lambda: Holder(CifarResNet()),
    "one layer": lambda: nn.Linear(2, 2),
    "no head": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)),
    **{name: partial(torchvision_model, name) for name in TORCHVISION},
    **{name: partial(timm_model, name) for name in TIMM},
    "googlenet with its auxiliary heads": partial(
        torchvision_model, "googlenet", init_weights=True
    ),
}


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> nn.Module:
    return NETWORKS[request.param]()


def test_every_parameter_is_in_exactly_one_block(network: nn.Module) -> None:
    listed = [name for block in list_blocks(network) for name in block.parameters]
    assert sorted(listed) == sorted(name for name, _ in network.named_parameters())


def test_every_block_has_parameters_and_a_name_of_its_own_and_the_head_is_last(
    network: nn.Module,
) -> None:
    blocks = list_blocks(network)
    assert all(block.parameters for block in blocks)
    assert len({block.name for block in blocks}) == len(blocks)
    assert blocks[-1].name == "head"


def test_every_module_that_computes_is_in_exactly_one_block(network: nn.Module) -> None:
    roots = [
        network.get_submodule(name) for block in list_blocks(network) for name in block.modules
    ]
    inside = [id(module) for root in roots for module in root.modules()]
    assert len(inside) == len(set(inside))
    leaves = {n: m for n, m in network.named_modules() if not [*m.children()]}
    outside = {name for name, module in leaves.items() if id(module) not in inside}
    assert outside <= {"metric", "loss"}  # these stand beside the network


@pytest.mark.parametrize("name", ["resnet18", "wide_resnet50_2", "resnext101_32x8d"])
def test_stages_that_are_brothers_stay_whole_however_large_one_is(name: str) -> None:
    expected = ["stem", "layer1", "layer2", "layer3", "layer4", "head"]
    assert names(torchvision_model(name)) == expected


def test_a_resnet_written_for_cifar_has_its_stages_as_blocks() -> None:
    net = CifarResNet()
    assert names(net) == ["stem", "layer1", "layer2", "layer3", "head"]
    assert block(net, "head").modules == ("linear",)


def test_a_deep_stem_of_several_convolutions_is_a_stem() -> None:
    net = timm_model("resnet50d")
    assert names(net) == ["stem", "layer1", "layer2", "layer3", "layer4", "head"]
    assert block(net, "stem").modules == ("conv1", "bn1", "act1", "maxpool")


def test_a_sequence_that_is_most_of_the_network_is_opened() -> None:
    net = torchvision_model("squeezenet1_1")
    fires = [f"features.{i}" for i in (3, 4, 6, 7, 9, 10, 11, 12)]
    assert names(net) == ["stem", *fires, "head"]
    assert block(net, "stem").modules == ("features.0", "features.1", "features.2")


def test_convolutions_take_their_norms_activations_and_pools_along() -> None:
    net = torchvision_model("vgg11_bn")
    assert names(net)[-3:] == ["classifier.0", "classifier.3", "head"]
    assert block(net, "features.4").modules == tuple(f"features.{i}" for i in (4, 5, 6, 7))


def test_transformer_blocks_are_found_and_tokens_and_positions_are_in_the_stem() -> None:
    vit = timm_model("test_vit")
    assert names(vit) == ["stem", *(f"blocks.{i}" for i in range(6)), "head"]
    assert {"cls_token", "pos_embed", "patch_embed.proj.weight"} <= {*block(vit, "stem").parameters}
    assert "norm.weight" in block(vit, "blocks.5").parameters


def test_a_sequence_inside_a_custom_module_is_opened() -> None:
    vit = torchvision_model("vit_b_16")
    assert names(vit)[1:-1] == [f"encoder.layers.encoder_layer_{i}" for i in range(12)]
    assert {"class_token", "encoder.pos_embedding"} <= {*block(vit, "stem").parameters}
    assert "encoder.ln.bias" in block(vit, "encoder.layers.encoder_layer_11").parameters


def test_layers_that_stand_alone_are_a_block_each_under_their_own_names() -> None:
    assert names(ThreeLinears()) == ["fc1", "fc2", "head"]


def test_what_has_no_parameters_right_before_the_head_goes_with_the_head() -> None:
    net = small_features()
    assert names(net) == ["features.0", "features.3", "head"]
    assert block(net, "head").modules == (
        "features.4",
        "pool",
        "classifier.0",
        "classifier.1",
        "classifier.2",
    )
    assert block(torchvision_model("squeezenet1_1"), "head").modules == tuple(
        f"classifier.{i}" for i in range(4)
    )


def test_a_module_that_holds_a_network_gives_the_same_names_and_its_own_full_paths() -> None:
    held, bare = list_blocks(Holder(CifarResNet())), list_blocks(CifarResNet())
    assert [block.name for block in held] == [block.name for block in bare]
    assert [block.modules for block in held] == [
        tuple(f"model.{name}" for name in block.modules) for block in bare
    ]
    assert held[0].parameters[0] == "model.conv1.weight"


@pytest.mark.parametrize("head_name", ["model.layer3", "layer3"])
def test_the_head_can_be_named_in_the_network_or_in_what_holds_it(head_name: str) -> None:
    blocks = list_blocks(Holder(CifarResNet()), head_name)
    assert [block.name for block in blocks] == ["stem", "layer1", "layer2", "linear", "head"]
    assert blocks[-1].modules == ("model.layer3",)


def test_a_head_that_was_registered_first_comes_last() -> None:
    net = nn.Sequential(OrderedDict(fc=nn.Linear(4, 2), conv=nn.Conv2d(3, 4, 3)))
    assert names(net, "fc") == ["conv", "head"]


def test_a_shared_parameter_belongs_to_the_block_that_has_it_first() -> None:
    net = ThreeLinears()
    net.fc2.weight = net.fc1.weight
    assert [block.parameters for block in list_blocks(net)] == [
        ("fc1.weight", "fc1.bias"),
        ("fc2.bias",),
        ("fc3.weight", "fc3.bias"),
    ]


def test_without_a_layer_that_could_be_the_head_the_last_block_is_called_so() -> None:
    assert names(NETWORKS["no head"]()) == ["0", "head"]


def test_a_module_called_head_that_is_not_the_head_keeps_out_of_its_way() -> None:
    net = nn.Sequential(OrderedDict(head=Residual(), fc=nn.Linear(4, 2)))
    assert names(net, "fc") == ["head_", "head"]


def test_a_model_without_parameters_has_no_blocks() -> None:
    assert list_blocks(nn.Sequential(nn.ReLU())) == []


def test_an_unknown_head_is_an_error_that_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"head_name='lineer'.*'linear'"):
        list_blocks(CifarResNet(), "lineer")

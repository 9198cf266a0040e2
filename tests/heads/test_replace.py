from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
import torchvision.models
from torch import Tensor, nn

from lit_finetune.heads.find import partner_heads
from lit_finetune.heads.replace import (
    add_classifier,
    find_head,
    forward_features,
    head_in_features,
    head_num_classes,
    replace_head,
)

timm = pytest.importorskip("timm")

TORCHVISION = {
    "alexnet": "classifier.6",
    "convnext_tiny": "classifier.2",
    "densenet121": "classifier",
    "efficientnet_b0": "classifier.1",
    "maxvit_t": "classifier.5",
    "mnasnet0_5": "classifier.1",
    "mobilenet_v3_small": "classifier.3",
    "resnet18": "fc",
    "shufflenet_v2_x0_5": "fc",
    "squeezenet1_1": "classifier.1",
    "swin_t": "head",
    "vgg11": "classifier.6",
    "vit_b_16": "heads.head",
}
TIMM = {
    "test_byobnet": "head.fc",
    "test_convnext": "head.fc",
    "test_efficientnet": "classifier",
    "test_resnet": "fc",
    "test_vit": "head",
    "efficientvit_b0": "head.classifier.4",
    "tf_mobilenetv3_small_minimal_100": "classifier",
}


def named(**modules: nn.Module) -> nn.Module:
    return nn.Sequential(OrderedDict(modules))


def on_meta(build: Callable[..., nn.Module], *args: object, **kwargs: object) -> nn.Module:
    with torch.device("meta"):
        return build(*args, **kwargs)


class OwnHead(nn.Module):
    """Dropout and a layer, as a class of the user's own."""

    def __init__(self, in_features: int = 8, num_classes: int = 5) -> None:
        super().__init__()
        self.dropout, self.linear = nn.Dropout(0.2), nn.Linear(in_features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.dropout(x))


class TransformerBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3)
        self.down, self.up = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(4, 8)
        self.colour, self.shape = nn.Linear(8, 3), nn.Linear(8, 5)


def tiny() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 5))


def tiny_convolutional() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


@pytest.mark.parametrize(("name", "head"), TORCHVISION.items())
def test_torchvision_classifiers_get_a_new_head_where_their_own_was(name: str, head: str) -> None:
    network = on_meta(torchvision.models.get_model, name)
    assert find_head(network) == head
    assert replace_head(network, 7) == head
    assert network(torch.zeros(2, 3, 224, 224, device="meta")).shape == (2, 7)


@pytest.mark.parametrize(("name", "head"), TIMM.items())
def test_timm_classifiers_get_a_new_head_where_their_own_was(name: str, head: str) -> None:
    network = timm.create_model(name)
    assert find_head(network) == head
    assert replace_head(network, 7) == head
    assert network(torch.zeros(2, *network.pretrained_cfg["input_size"])).shape == (2, 7)
    assert network.num_classes == 7


@pytest.mark.parametrize(
    ("network", "head"),
    [
        (named(conv1=nn.Conv2d(3, 8, 3), linear=nn.Linear(8, 10)), "linear"),
        (named(fc1=nn.Linear(8, 8), fc2=nn.Linear(8, 8), fc3=nn.Linear(8, 2)), "fc3"),
        (named(conv1=nn.Conv2d(3, 8, 3), fc=OwnHead()), "fc.linear"),
        (named(conv1=nn.Conv2d(3, 8, 3), fc=nn.Linear(8, 5), norm=nn.LayerNorm(5)), "fc"),
        (named(fc=nn.Linear(8, 5), aux1=nn.Linear(8, 5), AuxLogits=nn.Linear(8, 5)), "fc"),
        (named(a=TransformerBlock(), b=TransformerBlock(), out=nn.Linear(8, 5)), "out"),
        (named(out=nn.Linear(8, 5), a=TransformerBlock(), b=TransformerBlock()), "out"),
        (named(a=SqueezeExcite(), b=SqueezeExcite(), out=nn.Conv2d(8, 5, 1)), "out"),
        (named(out=nn.Linear(8, 5), a=SqueezeExcite(), b=SqueezeExcite()), "out"),
        (named(a=OwnHead(4, 8), b=OwnHead(8, 3)), "b.linear"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_head_is_found_in_a_users_own_network(network: nn.Module, head: str) -> None:
    assert find_head(network) == head


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)),
        nn.Sequential(TransformerBlock(), TransformerBlock()),
        nn.Sequential(SqueezeExcite(), SqueezeExcite()),
        nn.ReLU(),
    ],
)
def test_a_network_without_a_classifier_is_an_error_that_names_head_name(
    network: nn.Module,
) -> None:
    with pytest.raises(ValueError, match=r"no classifier layer.*head_name="):
        find_head(network)


def test_a_timm_network_that_was_built_without_classes_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"built without a classifier.*num_classes"):
        find_head(on_meta(timm.create_model, "test_vit", num_classes=0))


def test_two_heads_on_the_same_features_are_an_error_that_lists_them() -> None:
    with pytest.raises(ValueError, match=r"colour, shape.*head_name="):
        find_head(TwoHeads())
    assert replace_head(TwoHeads(), 2, head_name="shape") == "shape"


TOGETHER = {
    "crossvit_tiny_240": ("head.0", "head.1"),
    "deit_tiny_distilled_patch16_224": ("head", "head_dist"),
    "efficientvim_m1": ("heads.0", "heads.1", "heads.2", "heads.3"),
    "levit_128s": ("head.linear", "head_dist.linear"),
    "levit_384_s8": ("head.linear", "head_dist.linear"),
    "repvit_m0_9": ("head.head.l", "head.head_dist.l"),
    "volo_d1_224": ("head", "aux_head"),
}


@pytest.mark.parametrize(("name", "heads"), TOGETHER.items())
def test_heads_that_work_together_are_replaced_together(name: str, heads: tuple[str, ...]) -> None:
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    network = on_meta(timm.create_model, name)
    assert replace_head(network, 7, head="mlp", drop_rate=0.1) == heads[0]
    assert partner_heads(network, heads[0]) == heads
    assert [head_num_classes(network, head) for head in heads] == [7] * len(heads)
    size = network.pretrained_cfg["input_size"]
    assert network(torch.zeros(2, *size, device="meta")).shape == (2, 7)
    assert replace_head(network, 3, head_name=heads[-1], head=OwnHead) == heads[-1]
    assert all(isinstance(network.get_submodule(head), OwnHead) for head in heads)


def test_one_module_is_no_head_for_two() -> None:
    network = on_meta(timm.create_model, "deit_tiny_distilled_patch16_224")
    with pytest.raises(ValueError, match=r"head, head_dist.*a function"):
        replace_head(network, 2, head=nn.Linear(192, 2))


@pytest.mark.parametrize(
    ("name", "auxiliary"), [("googlenet", ["aux1", "aux2"]), ("inception_v3", ["AuxLogits"])]
)
def test_auxiliary_heads_learn_the_same_classes(name: str, auxiliary: list[str]) -> None:
    network = on_meta(torchvision.models.get_model, name, init_weights=False)
    before = [*network.state_dict()]
    assert replace_head(network, 7, head="mlp") == "fc"
    for head in auxiliary:
        assert head_num_classes(network, head) == 7
    others = [n for n in before if not n.startswith("fc.")]
    assert [n for n in network.state_dict() if not n.startswith("fc.")] == others


@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", "vit_small_patch14_dinov2"])
def test_timm_builds_the_classifier_that_it_left_out(name: str) -> None:
    network = on_meta(timm.create_model, name)
    assert add_classifier(network, 7)
    assert find_head(network) == "head"
    assert not add_classifier(network, 7)
    assert not add_classifier(tiny(), 7)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("build", [tiny, tiny_convolutional])
def test_the_new_head_gives_a_score_for_each_class_and_learns(
    build: Callable[[], nn.Sequential], kind: str
) -> None:
    network = build()
    name = replace_head(network, 2, head=kind, drop_rate=0.1)
    assert head_num_classes(network, name) == 2
    assert head_in_features(network, name) == 8
    x = torch.randn(6, 4) if build is tiny else torch.randn(6, 3, 8, 8)
    scores = network(x)
    assert scores.shape == (6, 2)
    scores.sum().backward()
    assert all(p.grad is not None for p in network.get_submodule(name).parameters())


@pytest.mark.parametrize("drop_rate", [0.0, 0.5])
def test_a_linear_head_keeps_the_names_of_its_parameters(drop_rate: float) -> None:
    network = tiny()
    names = [*network.state_dict()]
    replace_head(network, 2, drop_rate=drop_rate)
    assert [*network.state_dict()] == names


@pytest.mark.parametrize("build", [tiny, tiny_convolutional])
def test_dropout_works_in_training_and_not_in_evaluation(build: Callable[[], nn.Module]) -> None:
    network = build()
    replace_head(network, 2, drop_rate=0.5)
    x = torch.ones(1, 4) if build is tiny else torch.ones(1, 3, 8, 8)
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))


def test_a_module_is_put_in_as_it_is_and_a_function_is_told_the_sizes() -> None:
    network, own = tiny(), nn.Linear(8, 2, bias=False)
    assert network.get_submodule(replace_head(network, 2, head=own)) is own
    replace_head(network, 3, head=OwnHead)
    assert network[2].linear.weight.shape == (3, 8)
    assert find_head(network) == "2.linear"


def test_a_whole_module_can_be_replaced_by_its_name() -> None:
    network = named(conv1=nn.Linear(4, 8), fc=OwnHead())
    assert replace_head(network, 2, head_name="fc") == "fc"
    assert network(torch.zeros(1, 4)).shape == (1, 2)
    assert isinstance(network.fc, nn.Linear)


def test_the_new_head_is_where_the_old_one_was_and_of_its_number_type() -> None:
    network = on_meta(lambda: tiny().to(torch.bfloat16)).eval()
    replace_head(network, 2)
    assert (network[2].weight.device.type, network[2].weight.dtype) == ("meta", torch.bfloat16)
    assert not network[2].training


def test_squeezenet_is_told_how_many_classes_there_are() -> None:
    network = on_meta(torchvision.models.squeezenet1_1)
    replace_head(network, 2)
    assert network.num_classes == 2


def test_a_configuration_as_in_transformers_is_told_how_many_classes_there_are() -> None:
    class Config:
        num_labels = 5

    network = tiny()
    network.config = Config()
    replace_head(network, 2)
    assert network.config.num_labels == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "`num_classes` must be 1 or more, but got 0"),
        ({"head": "liner"}, "Unknown head 'liner'.*'linear'"),
        ({"drop_rate": 1.0}, "`drop_rate` is a probability below 1, but got 1.0"),
        ({"drop_rate": 0.1, "head": nn.Linear(8, 2)}, "`drop_rate` .0.1. is for"),
        ({"head_name": "3"}, "Sequential has no module '3'"),
        ({"head_name": "1"}, "`1` is of type ReLU.*head_name="),
        ({"head": nn.Linear(9, 2)}, "takes 9 features.*gives 8 features"),
        ({"head": nn.Linear(8, 3)}, "gives 3 classes.*there are 2 classes"),
        ({"head": lambda in_features, num_classes: None}, "must return an `nn.Module`"),
    ],
)
def test_what_cannot_be_is_an_error(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace_head(tiny(), **{"num_classes": 2, **arguments})


def test_a_network_that_is_nothing_but_a_head_is_an_error() -> None:
    with pytest.raises(ValueError, match="consists of its head only"):
        replace_head(nn.Linear(4, 2), 3)


def test_the_features_are_what_goes_into_the_head() -> None:
    network, x = tiny().eval(), torch.randn(3, 4)
    assert torch.equal(forward_features(network, "2", x), network[1](network[0](x)))
    assert torch.equal(network[2](forward_features(network, "2", x)), network(x))


def test_features_of_a_head_that_is_not_called_are_an_error() -> None:
    network = TwoHeads()
    network.forward = lambda x: network.colour(network.trunk(x))
    with pytest.raises(ValueError, match="does not call its head `shape`"):
        forward_features(network, "shape", torch.zeros(1, 4))

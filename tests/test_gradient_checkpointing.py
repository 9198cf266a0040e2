"""Recomputed activations give the same bits, in less memory, and only where there is a graph."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torchvision.models import get_model

from lit_finetune.blocks.block import list_blocks
from lit_finetune.freezing.freeze import enforce_eval, frozen_modules, set_trainable
from lit_finetune.gradient_checkpointing import recompute_units
from lit_finetune.schedules.selectors import select


class Unit(nn.Module):
    """All that a second run could get wrong: statistics, dropout, a norm that iterates."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4, momentum=None)
        self.two = spectral_norm(nn.Conv2d(4, 4, 3, padding=1))
        self.drop = nn.Dropout(0.5)
        self.runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return x + self.drop(self.two(torch.relu_(self.norm(self.one(x)))))


def tiny() -> nn.Module:
    """Three stages of two units, and a head."""
    net = nn.Sequential()
    net.add_module("stem", nn.Conv2d(3, 4, 3))
    for stage in (1, 2, 3):
        net.add_module(f"layer{stage}", nn.Sequential(Unit(), Unit()))
    net.add_module("flat", nn.Flatten())
    net.add_module("fc", nn.Linear(4 * 36, 3))
    return net


def of_timm(name: str, **options: Any) -> nn.Module:
    timm = pytest.importorskip("timm")
    return timm.create_model(name, num_classes=3, **options)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "tiny": (tiny, 8),
    "resnet18": (lambda: get_model("resnet18", num_classes=3), 32),
    "densenet121": (lambda: get_model("densenet121", num_classes=3, drop_rate=0.2), 32),
    "mobilenet_v3_small": (lambda: get_model("mobilenet_v3_small", num_classes=3), 32),
    "timm's resnet": (lambda: of_timm("test_resnet", drop_path_rate=0.3), 32),
    "timm's vit": (lambda: of_timm("test_vit", img_size=32, drop_path_rate=0.3, drop_rate=0.2), 32),
    "timm's convnext": (lambda: of_timm("test_convnext", drop_path_rate=0.3), 32),
    "timm's efficientnet": (lambda: of_timm("test_efficientnet", drop_path_rate=0.3), 32),
}


def build(name: str, *, recomputes: bool, trains: tuple[str, ...] = ("all",)) -> nn.Module:
    """A network, the same one every time, of which some blocks train."""
    torch.manual_seed(0)
    net = NETWORKS[name][0]().train()
    blocks = list_blocks(net)
    set_trainable(net, {n for selector in trains for n in select(selector, blocks)})
    enforce_eval(frozen_modules(net, blocks))
    if recomputes:
        recompute_units(net, blocks)
    return net


def images(name: str) -> Tensor:
    size = NETWORKS[name][1]
    return torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1))


def step(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Forward and backward; the gradients and buffers."""
    torch.manual_seed(2)
    net(x).square().sum().backward()
    gradients = {f"{n}.grad": p.grad for n, p in net.named_parameters() if p.grad is not None}
    return {**gradients, **dict(net.named_buffers())}


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


def saved_bytes(net: nn.Module, x: Tensor) -> int:
    """What a forward pass keeps for the backward pass, without the weights."""
    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = net(x)
    del logits
    return sum(size for key, size in kept.items() if key not in weights)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_and_statistics_are_the_same_bits(name: str) -> None:
    kept, recomputed = (build(name, recomputes=flag) for flag in (False, True))

    for _ in range(2):  # the second step finds the statistics of the first
        assert differing(step(kept, images(name)), step(recomputed, images(name))) == []


@pytest.mark.parametrize("name", NETWORKS)
def test_less_is_kept_for_the_backward_pass(name: str) -> None:
    kept, recomputed = (saved_bytes(build(name, recomputes=f), images(name)) for f in (False, True))

    assert recomputed < 0.65 * kept


def runs(net: nn.Module) -> list[int]:
    """How often each stage's first unit has run."""
    return [net.get_submodule(f"layer{stage}.0").runs for stage in (1, 2, 3)]


@pytest.mark.parametrize(
    ("trains", "expected"),
    [
        (("head",), [1, 1, 1]),
        (("head", "layer3"), [1, 1, 2]),
        (("all",), [2, 2, 2]),
        (("layer2",), [1, 2, 2]),  # the gradient of layer2 comes through layer3
    ],
)
def test_what_has_no_graph_runs_once_and_what_has_one_twice(
    trains: tuple[str, ...], expected: list[int]
) -> None:
    net = build("tiny", recomputes=True, trains=trains)
    reference = build("tiny", recomputes=False, trains=trains)
    seen = step(net, images("tiny"))

    assert runs(net) == expected
    assert differing(seen, step(reference, images("tiny"))) == []


def test_it_follows_what_trains_from_one_step_to_the_next() -> None:
    net = build("tiny", recomputes=True, trains=("head",))
    step(net, images("tiny"))
    blocks = list_blocks(net)
    set_trainable(net, {*select("head", blocks), *select("layer3", blocks)})
    step(net, images("tiny"))

    assert runs(net) == [2, 2, 3]


def test_evaluation_runs_once_and_keeps_nothing() -> None:
    net = build("tiny", recomputes=True)
    with torch.no_grad():
        assert saved_bytes(net, images("tiny")) == 0

    assert runs(net) == [1, 1, 1]


def test_a_graph_that_is_kept_can_be_walked_twice() -> None:
    gradients = []
    for flag in (False, True):
        net = build("tiny", recomputes=flag)
        torch.manual_seed(2)
        loss = net(images("tiny")).square().sum()
        loss.backward(retain_graph=True)
        loss.backward()
        gradients.append({n: p.grad for n, p in net.named_parameters()})

    assert differing(*gradients) == []


def test_half_precision_is_recomputed_in_half_precision() -> None:
    results = []
    for flag in (False, True):
        net = build("timm's resnet", recomputes=flag)
        with torch.autocast("cpu", torch.bfloat16):
            results.append(step(net, images("timm's resnet")))

    assert differing(*results) == []


def test_modules_keep_their_names_types_and_weights() -> None:
    plain, net = build("tiny", recomputes=False), build("tiny", recomputes=True)

    assert differing(plain.state_dict(), net.state_dict()) == []
    assert [(n, type(m).__name__) for n, m in plain.named_modules()] == [
        (n, type(m).__name__) for n, m in net.named_modules()
    ]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_a_copy_recomputes_with_weights_of_its_own(duplicate: Callable[[Any], Any]) -> None:
    net = build("timm's vit", recomputes=True)
    other = duplicate(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()

    expected = step(build("timm's vit", recomputes=False), images("timm's vit"))
    assert differing(step(other, images("timm's vit")), expected) == []
    assert saved_bytes(other, images("timm's vit")) < 0.65 * saved_bytes(
        build("timm's vit", recomputes=False), images("timm's vit")
    )


def test_an_input_that_is_changed_in_place_is_an_error_and_no_other_gradient() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: list[Tensor]) -> Tensor:
            return self.two(self.one(x[0].mul_(2)))  # in a list, as DenseNet passes them

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(4, 4)
            self.units = nn.ModuleList([InPlace(), InPlace()])
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for unit in self.units:
                x = unit([x])
            return self.fc(x)

    net = Net()
    assert recompute_units(net, list_blocks(net)) == ("units.0", "units.1")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        net(torch.randn(2, 4)).sum().backward()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tiny", ["layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0", "layer3.1"]),
        ("resnet18", [f"layer{stage}.{unit}" for stage in (1, 2, 3, 4) for unit in (0, 1)]),
        ("timm's vit", ["patch_embed", *(f"blocks.{i}" for i in range(6))]),
    ],
)
def test_the_units_are_what_blocks_repeat(name: str, expected: list[str]) -> None:
    net = NETWORKS[name][0]()

    assert list(recompute_units(net, list_blocks(net))) == expected


def compiled(backend: str, *, recomputes: bool) -> nn.Module:
    torch._dynamo.reset()
    torch.manual_seed(0)
    stage = nn.Sequential(*(PlainUnit() for _ in range(2)))
    net = nn.Sequential(nn.Conv2d(3, 4, 3), stage, nn.Flatten(), nn.Linear(4 * 36, 3))
    if recomputes:
        assert recompute_units(net, list_blocks(net)) == ("1.0", "1.1")
    return torch.compile(net, backend=backend)


class PlainUnit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = (nn.Conv2d(4, 4, 3, padding=1, bias=False) for _ in range(2))
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.two(torch.relu(self.norm(self.one(x)))))


@pytest.mark.slow
def test_statistics_of_a_compiled_network_are_counted_once() -> None:
    kept, recomputed = (compiled("aot_eager", recomputes=flag) for flag in (False, True))

    assert differing(step(kept, images("tiny")), step(recomputed, images("tiny"))) == []


@pytest.mark.long
def test_machine_code_keeps_less_as_well() -> None:
    sizes = [
        saved_bytes(compiled("inductor", recomputes=flag), images("tiny")) for flag in (False, True)
    ]

    assert sizes[1] < 0.8 * sizes[0]

"""Frozen is frozen: no gradient, no statistics, no dropout, and all of it back when released."""

from collections.abc import Collection

import pytest
import torch
from torch import Tensor, nn

from lit_finetune.blocks.block import list_blocks
from lit_finetune.freezing.freeze import (
    enforce_eval,
    frozen_modules,
    norm_parameters,
    restore_training,
    set_trainable,
)
from lit_finetune.modules.eval_mode import eval_mode
from lit_finetune.schedules.selectors import select


class DropPath(nn.Module):
    """Without parameters, as in timm."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.bernoulli(torch.full((len(x), 1, 1, 1), 0.5)) if self.training else x


class Unit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.plain_norm = nn.BatchNorm2d(4, affine=False)
        self.regular = nn.Sequential(nn.Dropout(0.5), DropPath())
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.regular(self.conv2(self.plain_norm(self.norm(self.conv1(x)))))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.layer1, self.layer2 = nn.Sequential(Unit(), Unit()), nn.Sequential(Unit(), Unit())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout, self.fc = nn.Dropout(0.5), nn.Linear(4, 2)

    def features(self, x: Tensor) -> Tensor:
        return self.layer2(self.layer1(self.norm(self.conv(x))))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.dropout(self.pool(self.features(x)).flatten(1)))


def freeze_but(net: nn.Module, *selectors: str, norms_train: bool = False) -> list[nn.Module]:
    """Train what is selected, and hold the rest as a callback does at the start of an epoch."""
    blocks = list_blocks(net)
    names = {name for selector in selectors for name in select(selector, blocks)}
    set_trainable(net, names | norm_parameters(net) if norms_train else names)
    net.train()
    frozen = frozen_modules(net, blocks, norms_train=norms_train)
    enforce_eval(frozen)
    return frozen


def training(net: nn.Module) -> set[str]:
    """The innermost modules that are in training mode."""
    return {n for n, m in net.named_modules() if m.training and not any(True for _ in m.children())}


def buffers(net: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    return {n: b.clone() for n, b in net.named_buffers() if n.startswith(prefix)}


def same(old: dict[str, Tensor], new: dict[str, Tensor]) -> bool:
    return all(torch.equal(old[name], new[name]) for name in old)


@pytest.mark.parametrize("chosen", [{"fc.weight"}, set(), {"conv.bias", "layer1.0.norm.weight"}])
def test_the_named_parameters_train_and_no_others(chosen: Collection[str]) -> None:
    net = Net()
    assert set_trainable(net, chosen)
    assert {name for name, p in net.named_parameters() if p.requires_grad} == set(chosen)
    assert not set_trainable(net, chosen), "nothing changed"


def test_a_parameter_that_is_frozen_loses_its_gradient_and_the_others_keep_theirs() -> None:
    net = Net()
    net(torch.randn(2, 3, 8, 8)).sum().backward()
    set_trainable(net, {"fc.weight", "fc.bias"})
    assert {name for name, p in net.named_parameters() if p.grad is not None} == {
        "fc.weight",
        "fc.bias",
    }


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_a_frozen_parameter_does_not_move_though_its_optimizer_has_momentum_and_decay(
    kind: type[torch.optim.Optimizer],
) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    more = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    optimizer = kind(net.parameters(), lr=0.1, weight_decay=0.1, **more)
    for step in range(4):
        if step == 2:
            set_trainable(net, {"1.weight", "1.bias"})
            frozen = net[0].weight.clone()
        optimizer.zero_grad(set_to_none=False)
        net(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    assert torch.equal(net[0].weight, frozen)


def test_frozen_features_are_those_of_evaluation_and_no_statistics_move() -> None:
    net = Net()
    freeze_but(net, "head")
    x, before = torch.randn(4, 3, 8, 8), buffers(net)

    features = net.features(x)

    assert same(before, buffers(net))
    assert torch.equal(features, net.eval().features(x))


def test_what_trains_keeps_its_dropout_and_statistics() -> None:
    net = Net()
    freeze_but(net, "layer2", "head")
    before = buffers(net)
    net(torch.randn(4, 3, 8, 8))

    after = buffers(net)
    assert {n.split(".")[0] for n in before if not torch.equal(before[n], after[n])} == {"layer2"}
    assert training(net) >= {"dropout", "layer2.0.regular.0", "layer2.0.regular.1"}


def test_the_heads_dropout_stays_on_while_that_of_frozen_blocks_is_off() -> None:
    net = Net()
    freeze_but(net, "head")
    assert training(net) == {"pool", "dropout", "fc"}


def test_a_part_of_a_block_trains_alone() -> None:
    net = Net()
    freeze_but(net, "layer2.1", "head")
    assert {name.rpartition(".")[0] for name in training(net)} == {
        "",
        "layer2.1",
        "layer2.1.regular",
    }


def test_a_bias_that_trains_keeps_only_its_own_module_from_freezing() -> None:
    net = Net()
    freeze_but(net, "layer1.0.conv1.bias", "head")
    frozen = {name for name, module in net.named_modules() if not module.training}
    assert {"layer1.0.conv2", "layer1.1.norm", "layer1.1.regular.0", "layer2", "conv"} <= frozen
    assert "layer1.0.conv1" not in frozen


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_statistics_stand_still_until_all_of_their_layer_trains(part: str) -> None:
    net = Net()
    freeze_but(net, f"layer1.0.norm.{part}", "head")
    assert not net.layer1[0].norm.training
    freeze_but(net.train(), "layer1.0.norm", "head")
    assert net.layer1[0].norm.training


def test_norms_train_in_frozen_blocks_when_asked_to_and_dropout_stays_off() -> None:
    net = Net()
    freeze_but(net, "head", norms_train=True)
    assert {name for name, p in net.named_parameters() if p.requires_grad} == {
        *norm_parameters(net),
        "fc.weight",
        "fc.bias",
    }
    units = [f"{layer}.{i}" for layer in ("layer1", "layer2") for i in (0, 1)]
    norms = {"norm", *(f"{unit}.{n}" for unit in units for n in ("norm", "plain_norm"))}
    assert training(net) == {"pool", "dropout", "fc", *norms}


def test_norm_parameters_are_those_of_every_kind_of_normalisation() -> None:
    kinds = {
        "batch": nn.BatchNorm2d(2),
        "sync": nn.SyncBatchNorm(2),
        "instance": nn.InstanceNorm2d(2, affine=True),
        "layer": nn.LayerNorm(2),
        "group": nn.GroupNorm(1, 2),
        "rms": nn.RMSNorm(2),
        "linear": nn.Linear(2, 2),
        "plain": nn.BatchNorm2d(2, affine=False),
    }
    names = norm_parameters(nn.ModuleDict(kinds))
    assert {name.split(".")[0] for name in names} == set(kinds) - {"linear", "plain"}


def test_hold_puts_back_what_lightning_or_anyone_sets_to_train() -> None:
    net = Net()
    frozen = freeze_but(net, "head")
    expected = training(net)
    for _ in range(2):
        net.eval()
        net.train()
        enforce_eval(frozen)
        assert training(net) == expected


def test_release_lets_all_train_again() -> None:
    net = Net()
    frozen = freeze_but(net, "head")
    restore_training(frozen)
    assert all(module.training for module in net.modules())


def test_the_next_phase_frees_what_it_adds_and_nothing_else() -> None:
    net = Net()
    before = freeze_but(net, "head")
    set_trainable(net, set(select("layer2", list_blocks(net))) | {"fc.weight", "fc.bias"})
    restore_training(before)
    enforce_eval(frozen_modules(net, list_blocks(net)))
    assert {name.split(".")[0] for name in training(net)} == {"layer2", "pool", "dropout", "fc"}


def test_a_module_that_two_blocks_share_trains_when_one_of_them_does() -> None:
    shared = nn.BatchNorm1d(2)
    net = nn.ModuleDict(
        {
            "a": nn.Sequential(nn.Linear(2, 2), shared),
            "b": nn.Sequential(nn.Linear(2, 2), shared),
            "fc": nn.Linear(2, 2),
        }
    )
    blocks = list_blocks(net)

    set_trainable(net, {"a.1.weight", "a.1.bias", "fc.weight", "fc.bias"})
    enforce_eval(frozen_modules(net, blocks))
    assert shared.training

    net.train()
    set_trainable(net, {"fc.weight", "fc.bias"})
    enforce_eval(frozen_modules(net, blocks))
    assert not shared.training


def test_a_dropout_that_frozen_and_training_blocks_share_stays_on() -> None:
    shared = nn.Dropout(0.5)
    net = nn.ModuleDict(
        {
            "a": nn.Sequential(nn.Linear(2, 2), shared),
            "b": nn.Sequential(nn.Linear(2, 2), shared),
            "fc": nn.Linear(2, 2),
        }
    )
    freeze_but(net, "b", "fc")
    assert training(net) == {"a.1", "b.0", "fc"}, "by its first name"
    freeze_but(net, "fc")
    assert training(net) == {"fc"}


def test_everything_may_be_frozen_and_everything_may_train() -> None:
    net = Net()
    freeze_but(net)
    assert training(net) == set()
    assert freeze_but(net, "all") == []


def test_eval_mode_gives_every_module_its_own_mode_back_even_after_an_error() -> None:
    net = Net()
    freeze_but(net, "head")
    expected = training(net)

    def fail() -> None:
        with eval_mode(net):
            assert training(net) == set()
            raise RuntimeError("by the way")

    with pytest.raises(RuntimeError, match="by the way"):
        fail()
    assert training(net) == expected


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_frozen_network_of_timm_gives_the_features_of_evaluation(name: str) -> None:
    timm = pytest.importorskip("timm")
    net = timm.create_model(name, num_classes=3, drop_path_rate=0.5)
    freeze_but(net, "head")
    x = torch.randn(2, 3, 160, 160)
    assert torch.equal(net.forward_features(x), net.eval().forward_features(x))

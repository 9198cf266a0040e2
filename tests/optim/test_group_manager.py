"""Whatever optimizer a module made: what is frozen waits outside, and joins at its own rate."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LambdaLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
)

from lit_finetune.blocks.block import list_blocks
from lit_finetune.freezing.freeze import norm_parameters
from lit_finetune.optim.group_manager import ParamGroupManager
from lit_finetune.optim.optimizer import add_following_groups, build_optimizer
from lit_finetune.optim.param_groups import make_param_groups
from lit_finetune.optim.phase_groups import refuse_optimizers
from lit_finetune.schedules.phases import parse_schedule
from lit_finetune.schedules.plan import make_plan


def unit() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))


class Net(nn.Module):
    """Three blocks and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1, self.layer2, self.layer3 = unit(), unit(), unit()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.layer3(self.layer2(self.layer1(x))))


class Run:
    """A network, the optimizers that its user made, and a schedule."""

    def __init__(
        self,
        make: Callable[[Net], Optimizer | Sequence[Optimizer]],
        schedule: dict[int, Any],
        *,
        make_scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        train_bn: bool = False,
    ) -> None:
        torch.manual_seed(0)
        self.net = Net()
        made = make(self.net)
        self.optimizers = [made] if isinstance(made, Optimizer) else list(made)
        self.schedulers = [make_scheduler(o) for o in self.optimizers] if make_scheduler else []
        blocks = list_blocks(self.net)
        self.plan = make_plan(parse_schedule(schedule), blocks, max_epochs=None)
        self.parameters = dict(self.net.named_parameters())
        self.manager = ParamGroupManager(
            self.optimizers,
            self.schedulers,
            self.parameters,
            {name: block.name for block in blocks for name in block.parameters},
        )
        norms = norm_parameters(self.net) - self.plan.trainable(0) if train_bn else ()
        self.manager.start(self.plan.phases[0].additions, sorted(norms))

    def add(self, index: int) -> None:
        for admission in self.plan.phases[index].additions:
            self.manager.add(admission)

    def groups(self, optimizer: int = 0) -> dict[Any, list[str]]:
        """The parameters of each group, by its name."""
        names = {id(parameter): name for name, parameter in self.parameters.items()}
        return {
            group.get("name"): [names[id(p)] for p in group["params"]]
            for group in self.optimizers[optimizer].param_groups
        }

    def rates(self, optimizer: int = 0) -> dict[Any, Any]:
        return {
            group.get("name"): pytest.approx(group["lr"], rel=1e-12)
            for group in self.optimizers[optimizer].param_groups
        }

    def rate_of(self, parameter: str) -> float:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                if any(self.parameters[parameter] is p for p in group["params"]):
                    return group["lr"]
        raise AssertionError(f"{parameter} is in no group")

    def held(self) -> list[str]:
        """All parameters that an optimizer holds, once for each time."""
        groups = [self.groups(index).values() for index in range(len(self.optimizers))]
        return sorted(name for each in groups for names in each for name in names)

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            trained = set(self.held())
            for name, parameter in self.parameters.items():
                parameter.grad = torch.ones_like(parameter) if name in trained else None
            for optimizer in self.optimizers:
                optimizer.step()
            for scheduler in self.schedulers:
                scheduler.step(*([1.0] if isinstance(scheduler, ReduceLROnPlateau) else []))


def names(*modules: str) -> list[str]:
    return [name for name, _ in Net().named_parameters() if name.startswith(modules)]


def in_one_group(net: Net) -> Optimizer:
    return SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)


def in_two_groups(net: Net) -> Optimizer:
    """The way of torch's tutorials: a slow backbone and a fast head, here the backbone first."""
    backbone = [p for name, p in net.named_parameters() if not name.startswith("fc")]
    return SGD(
        [
            {"params": backbone, "lr": 0.01, "weight_decay": 0.5},
            {"params": net.fc.parameters(), "lr": 0.1},
        ],
        lr=1.0,
        momentum=0.9,
    )


def of_the_classifier(net: Net) -> Optimizer:
    groups = make_param_groups(net, list_blocks(net), backbone_lr_ratio=0.1, layer_decay=0.5)
    parameters = dict(net.named_parameters())
    optimizer = build_optimizer(groups, parameters, factory=AdamW, lr=0.1, weight_decay=None)
    add_following_groups(optimizer, [], groups, parameters)
    return optimizer


def only_the_head(net: Net) -> Optimizer:
    return SGD(net.fc.parameters(), lr=0.1, momentum=0.9)


def with_names(net: Net) -> Optimizer:
    return SGD(net.named_parameters(), lr=0.1, momentum=0.9)


def one_for_each_half(net: Net) -> list[Optimizer]:
    first = SGD([*net.layer1.parameters(), *net.layer2.parameters()], lr=0.1)
    return [first, AdamW([*net.layer3.parameters(), *net.fc.parameters()], lr=0.02)]


MAKERS = (
    in_one_group,
    in_two_groups,
    of_the_classifier,
    only_the_head,
    with_names,
    one_for_each_half,
)
any_optimizer = pytest.mark.parametrize("make", MAKERS)
SCHEDULE = {
    0: "head",
    2: "layer3",
    4: ["layer2.0", {"modules": "layer2.1", "lr_scale": 0.3}],
    6: "all",
}


@any_optimizer
@pytest.mark.parametrize("train_bn", [False, True])
def test_the_optimizers_hold_what_trains_and_each_parameter_once(make: Any, train_bn: bool) -> None:
    run = Run(make, SCHEDULE, train_bn=train_bn)
    norms = norm_parameters(run.net) if train_bn else frozenset()
    for index in range(4):
        if index:
            run.add(index)
        assert run.held() == sorted(run.plan.trainable(index) | norms)


@any_optimizer
def test_what_the_optimizers_do_not_hold_does_not_move(make: Any) -> None:
    run = Run(make, SCHEDULE)
    for index in range(4):
        if index:
            run.add(index)
        before = copy.deepcopy(run.net.state_dict())
        run.step(2)
        moved = {
            name for name in run.parameters if not torch.equal(before[name], run.parameters[name])
        }
        assert moved == run.plan.trainable(index)


@any_optimizer
def test_groups_have_names_of_their_own(make: Any) -> None:
    run = Run(make, SCHEDULE, train_bn=True)
    for index in (1, 2, 3):
        run.add(index)
    for optimizer in run.optimizers:
        given = [group["name"] for group in optimizer.param_groups if "name" in group]
        assert len(set(given)) == len(given)


@any_optimizer
@pytest.mark.parametrize("train_bn", [False, True])
@pytest.mark.parametrize(
    "make_scheduler",
    [
        lambda o: LambdaLR(o, lambda step: 0.9**step),
        lambda o: CosineAnnealingLR(o, 20, eta_min=0.001),
        lambda o: ReduceLROnPlateau(o, patience=1),
    ],
)
def test_a_run_that_is_replayed_takes_the_state_and_goes_on_to_the_last_bit(
    make: Any, make_scheduler: Any, train_bn: bool
) -> None:
    def fresh() -> Run:
        return Run(make, SCHEDULE, make_scheduler=make_scheduler, train_bn=train_bn)

    run = fresh()
    for index in (1, 2):
        run.step(3)
        run.add(index)
    run.step(2)

    resumed = fresh()
    for index in (1, 2):
        resumed.add(index)
    for number in range(len(run.optimizers)):
        assert list(resumed.groups(number).items()) == list(run.groups(number).items())
    resumed.net.load_state_dict(run.net.state_dict())
    for old, new in zip(
        [*run.optimizers, *run.schedulers], [*resumed.optimizers, *resumed.schedulers], strict=True
    ):
        new.load_state_dict(copy.deepcopy(old.state_dict()))

    for _ in range(4):
        run.step()
        resumed.step()
    run.add(3)
    resumed.add(3)
    run.step(2)
    resumed.step(2)
    assert [[g["lr"] for g in o.param_groups] for o in resumed.optimizers] == [
        [g["lr"] for g in o.param_groups] for o in run.optimizers
    ]
    for name, parameter in run.parameters.items():
        assert torch.equal(parameter, resumed.parameters[name]), name


def test_one_group_of_everything_comes_back_block_by_block() -> None:
    run = Run(in_one_group, {0: "head", 1: ["layer3", "layer2"], 2: "all"})
    assert run.groups() == {None: names("fc")}
    run.add(1)
    run.add(2)
    assert run.groups() == {
        None: names("fc"),
        "layer3": names("layer3"),
        "layer2": names("layer2"),
        "layer1": names("layer1"),
    }
    assert all(group["weight_decay"] == 0.01 for group in run.optimizers[0].param_groups)


def test_a_users_groups_keep_their_rates_and_options() -> None:
    run = Run(in_two_groups, {0: "head", 1: "layer3", 2: "all"})
    assert [group["lr"] for group in run.optimizers[0].param_groups] == [0.1]
    run.add(1)
    run.add(2)

    options = {g.get("name"): (g["lr"], g["weight_decay"]) for g in run.optimizers[0].param_groups}
    assert options == {
        None: (0.1, 0),
        **{f"layer{i}": (pytest.approx(0.01), 0.5) for i in (3, 2, 1)},
    }


def test_the_classifiers_groups_come_back_under_their_own_names_and_rates() -> None:
    reference = of_the_classifier(Net())
    expected = {group["name"]: pytest.approx(group["lr"]) for group in reference.param_groups}
    run = Run(of_the_classifier, SCHEDULE | {4: "layer2"})
    assert {name.split("/")[0] for name in run.groups()} == {"head"}
    for index in (1, 2, 3):
        run.add(index)
    assert {group["name"]: group["lr"] for group in run.optimizers[0].param_groups} == expected
    decays = {g["name"]: g["weight_decay"] for g in run.optimizers[0].param_groups}
    assert decays["layer1/no_decay"] == 0 < decays["layer1/decay"]


def test_parts_of_a_block_that_come_apart_get_numbers() -> None:
    run = Run(in_one_group, {0: "head", 1: "layer3.0", 2: "layer3.1"})
    run.add(1)
    run.add(2)
    assert list(run.groups()) == [None, "layer3", "layer3#2"]


def test_parameters_that_no_optimizer_holds_join_with_the_leaders_options() -> None:
    run = Run(only_the_head, {0: "head", 1: {"modules": "layer3", "lr_scale": 0.1}, 2: "layer2"})
    run.add(1)
    run.add(2)
    assert run.groups()["layer3"] == names("layer3")
    assert run.rates() == {None: 0.1, "layer3": 0.1 * 0.1, "layer2": 0.1}
    assert run.optimizers[0].param_groups[1]["momentum"] == 0.9


@pytest.mark.parametrize(
    ("selection", "rate"),
    [({"lr": 0.5}, 0.5), ({"lr_scale": 0.5}, 0.05), ({}, 0.1)],
)
@pytest.mark.parametrize("make", [in_one_group, only_the_head, in_two_groups])
@pytest.mark.parametrize("epoch", [0, 3])
def test_a_rate_is_the_users_or_a_multiple_of_the_leaders_whenever_it_starts(
    make: Any, selection: dict[str, float], rate: float, epoch: int
) -> None:
    entry = {"modules": "layer3", **selection}
    schedule = {0: ["head", entry]} if epoch == 0 else {0: "head", epoch: entry}
    run = Run(make, schedule)
    if epoch:
        run.add(1)
    if make is in_two_groups:  # there the backbone's group leads as long as it trains
        leader = 0.01 if epoch == 0 else 0.1
        rate = {"lr": 0.5, "lr_scale": 0.5 * leader}.get(*selection, 0) if selection else 0.01
    assert run.rate_of("layer3.0.weight") == pytest.approx(rate)
    assert run.rate_of("fc.weight") == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("selection", "expected"), [({"lr": 0.5}, 0.5), ({"lr_scale": 0.5}, 0.05), ({}, 0.1)]
)
def test_the_leaders_own_rate_may_change_and_the_others_keep_theirs(
    selection: dict[str, float], expected: float
) -> None:
    run = Run(in_one_group, {0: {"modules": "head", **selection}, 1: "layer3"})
    run.add(1)
    assert run.rate_of("fc.weight") == pytest.approx(expected)
    assert run.rate_of("layer3.0.weight") == pytest.approx(0.1)


def test_a_scale_that_comes_later_counts_from_the_leaders_changed_rate() -> None:
    schedule = {0: {"modules": "head", "lr": 0.5}, 1: {"modules": "layer3", "lr_scale": 0.1}}
    run = Run(in_one_group, schedule)
    run.add(1)
    assert run.rate_of("layer3.0.weight") == pytest.approx(0.05)


def test_a_rate_for_all_is_the_rate_of_all() -> None:
    run = Run(of_the_classifier, {0: {"modules": "all", "lr": 0.3}})
    assert [group["lr"] for group in run.optimizers[0].param_groups] == [pytest.approx(0.3)] * 8


@pytest.mark.parametrize("epoch", [0, 4])
@pytest.mark.parametrize("kind", ["plateau", "one cycle", "lambda"])
def test_a_given_rate_is_the_one_before_any_schedule(kind: str, epoch: int) -> None:
    make_scheduler = {
        "plateau": lambda o: ReduceLROnPlateau(o, patience=0, factor=0.5),
        "one cycle": lambda o: OneCycleLR(o, max_lr=0.1, total_steps=40),
        "lambda": lambda o: LambdaLR(o, lambda step: 0.9**step),
    }[kind]
    entry = {"modules": "layer3", "lr": 0.03}
    schedule = {0: ["head", entry]} if epoch == 0 else {0: "head", epoch: entry}
    run = Run(in_one_group, schedule, make_scheduler=make_scheduler)
    for step in range(10):
        if step == epoch != 0:
            run.add(1)
        if step >= epoch:
            share = run.rate_of("layer3.0.weight") / run.rate_of("fc.weight")
            assert share == pytest.approx(0.3)
        run.step()


def test_norms_of_frozen_blocks_train_in_groups_of_their_own_at_the_rates_of_their_blocks() -> None:
    run = Run(of_the_classifier, {0: "head", 1: "layer3"}, train_bn=True)
    groups, rates = run.groups(), run.rates()
    for i, rate in ((3, 0.01), (2, 0.005), (1, 0.0025)):
        assert groups[f"layer{i}/norm"] == names(f"layer{i}.1")
        assert rates[f"layer{i}/norm"] == rate

    run.add(1)
    assert run.groups()["layer3/decay"] == ["layer3.0.weight"]
    assert run.groups()["layer3/no_decay"] == ["layer3.0.bias"]
    assert run.groups()["layer3/norm"] == groups["layer3/norm"], "it trains already"


def test_several_optimizers_keep_each_its_own() -> None:
    run = Run(one_for_each_half, {0: "head", 1: "layer3", 2: "all"})
    assert run.groups(0) == {None: []}, "an optimizer is never without a group"
    assert run.groups(1) == {None: names("fc")}
    run.add(1)
    run.add(2)
    assert run.groups(0) == {None: [], "layer1": names("layer1"), "layer2": names("layer2")}
    assert run.groups(1) == {None: names("fc"), "layer3": names("layer3")}
    assert run.rates(0) == {None: 0.1, "layer1": 0.1, "layer2": 0.1}
    assert run.rates(1) == {None: 0.02, "layer3": 0.02}


@pytest.mark.parametrize("kind", [SGD, AdamW, torch.optim.RMSprop, torch.optim.Adagrad])
def test_an_optimizer_steps_while_all_of_it_waits(kind: type[Optimizer]) -> None:
    def make(net: Net) -> list[Optimizer]:
        return [kind(net.layer1.parameters(), lr=0.1), SGD(net.fc.parameters(), lr=0.1)]

    run = Run(make, {0: "head", 1: "layer1"}, make_scheduler=lambda o: CosineAnnealingLR(o, 9))
    run.step(3)
    run.add(1)
    run.step(3)
    leader, joined = (group["lr"] for group in run.optimizers[0].param_groups)
    assert joined == leader


def test_an_optimizer_with_named_parameters_keeps_the_names() -> None:
    run = Run(with_names, SCHEDULE)
    for index in (1, 2, 3):
        run.add(index)
    for group in run.optimizers[0].param_groups:
        assert [
            run.parameters[name] is p
            for name, p in zip(group["param_names"], group["params"], strict=True)
        ] == [True] * len(group["params"])
    run.step()


def test_momentum_of_what_stays_goes_on() -> None:
    run = Run(in_one_group, {0: "head", 2: "layer3"})
    run.step(2)
    state = run.optimizers[0].state
    before = state[run.net.fc.weight]["momentum_buffer"].clone()
    run.add(1)
    assert torch.equal(state[run.net.fc.weight]["momentum_buffer"], before)


@pytest.mark.parametrize("make", [in_one_group, in_two_groups])
def test_what_leaves_takes_its_state_with_it(make: Any) -> None:
    def after_a_step(net: Net) -> Optimizer:
        optimizer = make(net)
        net(torch.randn(4, 3)).sum().backward()
        optimizer.step()
        return optimizer

    run = Run(after_a_step, {0: "head"})
    assert set(run.optimizers[0].state) == set(run.net.fc.parameters())


def test_a_group_of_parameters_that_the_network_does_not_hold_is_left_alone() -> None:
    extra = nn.Parameter(torch.ones(2))

    def make(net: Net) -> Optimizer:
        return SGD([{"params": net.parameters()}, {"params": [extra], "lr": 0.5}], lr=0.1)

    run = Run(make, {0: "head"})
    left = run.optimizers[0].param_groups[1]
    assert (left["params"], left["lr"]) == ([extra], 0.5)


def test_an_optimizer_of_one_group_only_is_refused_where_something_would_join_it() -> None:
    Run(lambda net: LBFGS(net.parameters()), {0: "head"})
    with pytest.raises(ValueError, match="LBFGS supports one parameter group"):
        Run(lambda net: LBFGS(net.fc.parameters()), {0: ["head", "layer3"]})
    with pytest.raises(ValueError, match="LBFGS supports one parameter group"):
        refuse_optimizers([LBFGS([nn.Parameter(torch.ones(1))])], num_phases=2)


def test_a_run_without_an_optimizer_is_refused() -> None:
    with pytest.raises(ValueError, match="`configure_optimizers` returns no optimizer"):
        refuse_optimizers([], num_phases=1)


def test_nothing_can_be_in_proportion_to_a_rate_of_zero() -> None:
    run = Run(lambda net: SGD(net.parameters(), lr=0.0), {0: "head", 1: "layer3"})
    run.add(1)  # 0 as well
    with pytest.raises(ValueError, match="learning rate 0"):
        Run(
            lambda net: SGD(net.parameters(), lr=0.0),
            {0: ["head", {"modules": "layer3", "lr": 0.1}]},
        )

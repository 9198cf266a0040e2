from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adadelta, AdamW, Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CyclicLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
)

from lit_finetune.blocks.block import list_blocks
from lit_finetune.optim.optimizer import (
    DEFAULT_LR,
    add_following_groups,
    build_optimizer,
    cosine_with_warmup,
    leading_groups,
    warmup_cosine,
)
from lit_finetune.optim.param_groups import ParamGroup, make_param_groups


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.norm, self.fc2 = nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2)
        self.fc3 = nn.Linear(2, 2)


class Built:
    """An optimizer with a scheduler over all groups of a network."""

    def __init__(
        self,
        factory: Callable[..., Optimizer] = AdamW,
        *,
        lr: float = DEFAULT_LR,
        weight_decay: float | None = None,
        make_scheduler: Callable[[Optimizer], LRScheduler] | None = None,
    ) -> None:
        net = Net()
        self.parameters = dict(net.named_parameters())
        self.groups: Sequence[ParamGroup] = make_param_groups(
            net, list_blocks(net), backbone_lr_ratio=0.1, layer_decay=0.5
        )
        self.optimizer = build_optimizer(
            self.groups, self.parameters, factory=factory, lr=lr, weight_decay=weight_decay
        )
        self.scheduler = make_scheduler(self.optimizer) if make_scheduler else None
        schedulers = [self.scheduler] if self.scheduler else []
        add_following_groups(self.optimizer, schedulers, self.groups, self.parameters)

    def of_each(self, key: str) -> dict[str, Any]:
        return {group["name"]: group[key] for group in self.optimizer.param_groups}


def test_every_group_is_there_in_order_with_its_parameters() -> None:
    built = Built()
    assert list(built.of_each("name")) == [group.name for group in built.groups]
    for planned, made in zip(built.groups, built.optimizer.param_groups, strict=True):
        expected = [built.parameters[name] for name in planned.parameters]
        assert list(map(id, made["params"])) == list(map(id, expected))


def test_rates_are_real_and_in_proportion_to_the_heads() -> None:
    rates = Built(lr=0.4).of_each("lr")
    expected = {"head": 0.4, "fc2": 0.04, "fc1": 0.02}
    assert rates == {
        f"{block}/{kind}": pytest.approx(rate)
        for block, rate in expected.items()
        for kind in ("decay", "no_decay")
    }


def test_the_leading_groups_are_those_of_the_head() -> None:
    names = [group.name for group in leading_groups(Built().groups)]
    assert names == ["head/decay", "head/no_decay"]


@pytest.mark.parametrize(
    ("factory", "given", "expected"),
    [
        (AdamW, None, 0.01),
        (AdamW, 0.3, 0.3),
        (SGD, None, 0.0),
        (partial(SGD, weight_decay=0.2), None, 0.2),
    ],
)
def test_weight_decay_is_the_given_one_or_the_optimizers_and_none_on_norms_and_biases(
    factory: Any, given: float | None, expected: float
) -> None:
    decays = Built(factory, weight_decay=given).of_each("weight_decay")
    assert {rate for name, rate in decays.items() if name.endswith("/decay")} == {expected}
    assert {rate for name, rate in decays.items() if name.endswith("/no_decay")} == {0.0}


@pytest.mark.parametrize(
    ("factory", "lr", "expected"),
    [
        (AdamW, DEFAULT_LR, DEFAULT_LR),
        (AdamW, 0.02, 0.02),
        (Adadelta, DEFAULT_LR, DEFAULT_LR),  # its default of 1.0 was nobody's wish
        (partial(SGD, lr=0.3), DEFAULT_LR, 0.3),
        (partial(SGD, lr=0.3), 0.3, 0.3),
    ],
)
def test_the_rate_is_the_one_that_was_given(factory: Any, lr: float, expected: float) -> None:
    built = Built(factory, lr=lr)
    assert built.of_each("lr")["head/decay"] == expected
    assert built.of_each("lr")["fc2/decay"] == pytest.approx(expected / 10)
    assert built.optimizer.defaults["lr"] == expected


def test_two_different_rates_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`lr` is 0.2, and the optimizer SGD has lr=0.3"):
        Built(partial(SGD, lr=0.3), lr=0.2)


def test_a_rate_that_a_factory_gives_a_group_of_its_own_is_kept() -> None:
    def factory(groups: list[dict[str, Any]]) -> Optimizer:
        extra = {"params": [nn.Parameter(torch.ones(1))], "name": "extra", "lr": 0.7}
        return SGD([*groups, extra], lr=0.3)

    rates = Built(factory).of_each("lr")
    assert (rates["head/decay"], rates["extra"]) == (0.3, 0.7)


@pytest.mark.parametrize(
    "make_scheduler",
    [
        lambda o: OneCycleLR(o, max_lr=0.5, total_steps=20),
        lambda o: CyclicLR(o, 0.1, 0.5, step_size_up=3, cycle_momentum=False),
        lambda o: CosineAnnealingLR(o, 20),
        lambda o: ReduceLROnPlateau(o, patience=2, factor=0.5, min_lr=1e-4),
        lambda o: cosine_with_warmup(o, total=20, warmup_share=0.2),
    ],
)
def test_rates_stay_in_proportion_under_schedulers_that_level_all_groups_they_know(
    make_scheduler: Any,
) -> None:
    built = Built(make_scheduler=make_scheduler)
    seen = set()
    for _ in range(19):
        built.optimizer.step()
        built.scheduler.step(*([1.0] if isinstance(built.scheduler, ReduceLROnPlateau) else []))
        rates = built.of_each("lr")
        seen.add(rates["head/decay"])
        for name, share in (("fc2/decay", 0.1), ("fc1/no_decay", 0.05)):
            assert rates[name] == pytest.approx(share * rates["head/decay"], rel=1e-12)
    assert len(seen) > 2


def test_a_users_scheduler_that_could_not_follow_is_refused() -> None:
    class PerGroup(LRScheduler):
        def __init__(self, optimizer: Optimizer) -> None:
            self.peaks = [group["lr"] for group in optimizer.param_groups]
            super().__init__(optimizer)

        def get_lr(self) -> list[Any]:
            return [peak / (1 + self.last_epoch) for peak in self.peaks]

    with pytest.raises(ValueError, match="PerGroup keeps `peaks`"):
        Built(make_scheduler=PerGroup)


@pytest.mark.parametrize(("total", "warmup_share"), [(100, 0.05), (100, 0.0), (10, 0.5), (1, 0.05)])
def test_the_default_schedule_rises_in_a_line_and_falls_to_nothing(
    total: int, warmup_share: float
) -> None:
    optimizer = SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler = cosine_with_warmup(optimizer, total=total, warmup_share=warmup_share)
    rates = []
    for _ in range(total):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    warmup = round(total * warmup_share)
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[:warmup] == [pytest.approx((i + 1) / warmup) for i in range(warmup)]
    assert rates[warmup] == 1.0
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert scheduler.get_last_lr() == [0.0]


def test_past_its_end_the_rate_stays_at_nothing() -> None:
    assert warmup_cosine(50, warmup=2, total=20) == 0.0

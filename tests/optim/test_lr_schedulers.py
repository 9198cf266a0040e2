"""The reference is torch: a group that joins late stands where one stands that never was away."""

import copy
import io
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiplicativeLR,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)
from torch.optim.swa_utils import SWALR

from lit_finetune.optim.lr_schedulers import (
    add_group,
    base_lr,
    refuse_unknown_lists,
    remove_group,
    scale_group,
)
from lit_finetune.optim.optimizer import cosine_with_warmup

STEPS = 24
SCALE = 0.1
BASE = 0.01

Make = Callable[[Optimizer, Sequence[float]], LRScheduler]
"""From an optimizer and the scale of each of its groups to a scheduler."""


def huggingface_cosine(step: int) -> float:
    """The factor of Hugging Face's `get_cosine_schedule_with_warmup(warmup 5, total 24)`."""
    if step < 5:
        return step / max(1, 5)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * 0.5 * 2.0 * (step - 5) / 19)))


def one_cycle(optimizer: Optimizer, scales: Sequence[float], **kwargs: Any) -> LRScheduler:
    peaks = [BASE * scale for scale in scales]
    return OneCycleLR(optimizer, max_lr=peaks, total_steps=STEPS + 1, **kwargs)


def cyclic(optimizer: Optimizer, scales: Sequence[float], **kwargs: Any) -> LRScheduler:
    low, high = ([rate * scale for scale in scales] for rate in (BASE, 5 * BASE))
    return CyclicLR(optimizer, low, high, step_size_up=4, step_size_down=7, **kwargs)


def warmup_then(make: Callable[[Optimizer], LRScheduler]) -> Make:
    return lambda o, _: SequentialLR(o, [LinearLR(o, 0.2, total_iters=4), make(o)], milestones=[5])


def warmup_then_one_cycle(optimizer: Optimizer, scales: Sequence[float]) -> LRScheduler:
    after = one_cycle(optimizer, scales)
    return SequentialLR(optimizer, [ConstantLR(optimizer, 0.5, total_iters=3), after], [4])


def nested_twice(optimizer: Optimizer, _: Sequence[float]) -> LRScheduler:
    inner = SequentialLR(
        optimizer, [ConstantLR(optimizer, 0.5, 3), ExponentialLR(optimizer, 0.9)], milestones=[4]
    )
    return SequentialLR(optimizer, [inner, CosineAnnealingLR(optimizer, 8)], milestones=[12])


SCHEDULERS: dict[str, Make] = {
    "StepLR": lambda o, _: StepLR(o, 4, gamma=0.5),
    "MultiStepLR": lambda o, _: MultiStepLR(o, [3, 9, 9, 17]),
    "ConstantLR": lambda o, _: ConstantLR(o, 0.25, total_iters=10),
    "LinearLR": lambda o, _: LinearLR(o, 0.1, total_iters=12),
    "ExponentialLR": lambda o, _: ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o, _: PolynomialLR(o, total_iters=20, power=2.0),
    "CosineAnnealingLR": lambda o, _: CosineAnnealingLR(o, STEPS),
    "CosineAnnealingLR past its end": lambda o, _: CosineAnnealingLR(o, 7),
    "CosineAnnealingWarmRestarts": lambda o, _: CosineAnnealingWarmRestarts(o, 4, T_mult=2),
    "LambdaLR": lambda o, _: LambdaLR(o, lambda step: 0.95**step),
    "LambdaLR of Hugging Face": lambda o, _: LambdaLR(o, huggingface_cosine),
    "LambdaLR with a list": lambda o, s: LambdaLR(o, [huggingface_cosine for _ in s]),
    "MultiplicativeLR": lambda o, _: MultiplicativeLR(o, lambda step: 0.9 if step % 3 else 1.1),
    "OneCycleLR": one_cycle,
    "OneCycleLR, linear in three phases": lambda o, s: one_cycle(
        o, s, three_phase=True, anneal_strategy="linear"
    ),
    "OneCycleLR without momentum": lambda o, s: one_cycle(o, s, cycle_momentum=False),
    "CyclicLR": cyclic,
    "CyclicLR without momentum": lambda o, s: cyclic(o, s, cycle_momentum=False),
    "CyclicLR, exponential": lambda o, s: cyclic(o, s, mode="exp_range", gamma=0.97),
    "ReduceLROnPlateau": lambda o, _: ReduceLROnPlateau(o, patience=2, factor=0.5),
    "ReduceLROnPlateau with a floor": lambda o, s: ReduceLROnPlateau(
        o, patience=1, factor=0.3, min_lr=BASE / 20 if len(s) == 1 else [BASE / 20 * x for x in s]
    ),
    "ReduceLROnPlateau with a list of floors": lambda o, s: ReduceLROnPlateau(
        o, patience=1, factor=0.3, min_lr=[BASE / 20 * x for x in s]
    ),
    "SequentialLR": warmup_then(lambda o: CosineAnnealingLR(o, 18)),
    "SequentialLR to warm restarts": warmup_then(lambda o: CosineAnnealingWarmRestarts(o, 6)),
    "SequentialLR to OneCycleLR": warmup_then_one_cycle,
    "SequentialLR, nested": nested_twice,
    "ChainedScheduler": lambda o, _: ChainedScheduler(
        [ConstantLR(o, 0.1, total_iters=6), ExponentialLR(o, 0.9)]
    ),
    "ChainedScheduler with a SequentialLR": lambda o, _: ChainedScheduler(
        [warmup_then(lambda o: StepLR(o, 5))(o, ()), ExponentialLR(o, 0.95)]
    ),
    "SWALR": lambda o, s: SWALR(o, [BASE / 2 * x for x in s], anneal_epochs=9),
    "our cosine with warm-up": lambda o, _: cosine_with_warmup(o, total=STEPS, warmup_share=0.2),
}
FLOORED: dict[str, Make] = {
    "CosineAnnealingLR": lambda o, _: CosineAnnealingLR(o, STEPS, eta_min=BASE / 5),
    "CosineAnnealingLR past its end": lambda o, _: CosineAnnealingLR(o, 7, eta_min=BASE / 5),
    "CosineAnnealingWarmRestarts": lambda o, _: CosineAnnealingWarmRestarts(o, 5, 2, BASE / 5),
    "SequentialLR": warmup_then(lambda o: CosineAnnealingLR(o, 9, eta_min=BASE / 5)),
}
OPTIMIZERS = {"SGD": lambda groups: SGD(groups, lr=BASE, momentum=0.9), "AdamW": AdamW}

every_scheduler = pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
every_floor = pytest.mark.parametrize("make", FLOORED.values(), ids=FLOORED)
every_optimizer = pytest.mark.parametrize("kind", OPTIMIZERS)
at_any_step = pytest.mark.parametrize("start", [0, 7, 8, 20])


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        # torch's own, about `SequentialLR` calling `step(epoch)`, and about skipped steps.
        warnings.simplefilter("ignore", UserWarning)
        yield


class Run:
    """An optimizer and a scheduler over one group, `head`, and whatever joins it."""

    def __init__(self, make: Make, kind: str, scales: Sequence[float] = (1.0,)) -> None:
        groups = [
            {"params": [nn.Parameter(torch.ones(2))], "name": f"{i}", "lr": BASE * scale}
            for i, scale in enumerate(scales)
        ]
        self.optimizer: Optimizer = OPTIMIZERS[kind](groups)
        self.scheduler = make(self.optimizer, scales)

    def join(self, name: str = "new", scale: float = SCALE, **options: Any) -> None:
        group = {"params": [nn.Parameter(torch.ones(2))], "name": name, **options}
        add_group(self.optimizer, [self.scheduler], group, scale=scale)

    def step(self) -> None:
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.full_like(parameter, 0.5)
        self.optimizer.step()
        metric = [1.0] if isinstance(self.scheduler, ReduceLROnPlateau) else []
        self.scheduler.step(*metric)

    def rates(self) -> list[float]:
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def weights(self) -> list[list[float]]:
        return [group["params"][0].tolist() for group in self.optimizer.param_groups]

    def state(self) -> Any:
        """What a checkpoint holds, written and read as Lightning does."""
        file = io.BytesIO()
        torch.save([self.optimizer.state_dict(), self.scheduler.state_dict()], file)
        file.seek(0)
        return torch.load(file, weights_only=True)


def close(rate: float) -> Any:
    """As good as equal: torch's recursive formulas round differently from another start."""
    return pytest.approx(rate, rel=1e-12, abs=1e-20)


@every_scheduler
@at_any_step
def test_a_group_that_joins_has_its_share_of_the_leaders_rate_from_then_on(
    make: Make, start: int
) -> None:
    run = Run(make, "SGD")
    for step in range(STEPS):
        if step == start:
            run.join()
        if step >= start:
            leader, follower = run.rates()
            assert follower == close(SCALE * leader), f"at step {step}"
        run.step()


@every_optimizer
@pytest.mark.parametrize(
    "make",
    [*SCHEDULERS.values(), *FLOORED.values()],
    ids=[*SCHEDULERS, *(f"{name} with a floor" for name in FLOORED)],
)
@at_any_step
def test_a_group_that_joins_moves_like_one_that_was_there_from_the_start(
    make: Make, kind: str, start: int
) -> None:
    run, reference = Run(make, kind), Run(make, kind, scales=(1.0, SCALE))
    for step in range(STEPS):
        if step == start:
            run.join()
        if step >= start:
            assert run.rates() == [close(rate) for rate in reference.rates()], f"at step {step}"
            momenta = [
                [(group.get("momentum"), group.get("betas")) for group in r.optimizer.param_groups]
                for r in (run, reference)
            ]
            assert momenta[0] == momenta[1]
        run.step()
        reference.step()


@every_floor
@at_any_step
def test_no_rate_falls_below_zero_or_leaves_the_way_to_the_common_floor(
    make: Make, start: int
) -> None:
    run = Run(make, "SGD")
    for step in range(STEPS):
        if step == start:
            run.join()
        if step >= start:
            assert 0 < run.rates()[1] <= max(BASE / 5, SCALE * BASE) * (1 + 1e-9)
        run.step()


def test_a_leader_that_never_leaves_the_floor_takes_the_new_group_there() -> None:
    run = Run(lambda o, _: CosineAnnealingLR(o, 5, eta_min=BASE), "SGD")
    run.step()
    run.join()
    assert run.rates() == [BASE, BASE]


@every_optimizer
@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
@pytest.mark.parametrize(("start", "cut"), [(6, 6), (6, 15)])
def test_a_resumed_run_has_the_same_rates_and_weights_to_the_last_bit(
    make: Make, kind: str, start: int, cut: int
) -> None:
    run = Run(make, kind)
    for step in range(cut):
        if step == start:
            run.join()
        run.step()
    if cut == start:
        run.join()
    resumed = Run(make, kind)
    resumed.join()
    for fresh, old in zip(resumed.optimizer.param_groups, run.optimizer.param_groups, strict=True):
        fresh["params"][0].data.copy_(old["params"][0].data)
    optimizer_state, scheduler_state = run.state()
    resumed.optimizer.load_state_dict(optimizer_state)
    resumed.scheduler.load_state_dict(scheduler_state)

    for _ in range(cut, STEPS):
        run.step()
        resumed.step()
        assert resumed.rates() == run.rates()
        assert resumed.weights() == run.weights()


@every_scheduler
def test_a_group_that_leaves_changes_nothing_for_the_others(make: Make) -> None:
    run, reference = Run(make, "AdamW"), Run(make, "AdamW")
    run.join("first")
    run.join("second", scale=0.3)
    for step in range(STEPS):
        if step == 9:
            remove_group(run.optimizer, [run.scheduler], 1)
        if step >= 9:
            leader, second = run.rates()
            assert leader == reference.rates()[0]
            assert second == close(0.3 * leader)
        run.step()
        reference.step()


@every_scheduler
@pytest.mark.parametrize("start", [0, 9])
def test_a_group_that_is_rescaled_has_its_new_share_from_then_on(make: Make, start: int) -> None:
    run = Run(make, "SGD")
    run.join()
    for step in range(STEPS):
        if step == start:
            scale_group(run.optimizer, [run.scheduler], 1, 5.0)
        if step >= start:
            leader, follower = run.rates()
            assert follower == close(5 * SCALE * leader)
        run.step()


@every_floor
def test_a_rescaled_group_moves_like_one_that_had_its_rate_from_the_start(make: Make) -> None:
    run, reference = Run(make, "SGD"), Run(make, "SGD", scales=(1.0, 5 * SCALE))
    run.join()
    for step in range(STEPS):
        if step == 9:
            scale_group(run.optimizer, [run.scheduler], 1, 5.0)
        if step >= 9:
            assert run.rates() == [close(rate) for rate in reference.rates()]
        run.step()
        reference.step()


def test_a_removed_groups_state_is_gone_and_the_others_momentum_stays() -> None:
    run = Run(SCHEDULERS["StepLR"], "SGD")
    run.join()
    run.step()
    head, leaving = (group["params"][0] for group in run.optimizer.param_groups)
    momentum = run.optimizer.state[head]["momentum_buffer"].clone()

    remove_group(run.optimizer, [run.scheduler], 1)

    assert leaving not in run.optimizer.state
    assert torch.equal(run.optimizer.state[head]["momentum_buffer"], momentum)


def test_a_group_keeps_its_own_options_and_takes_the_others_from_the_leader() -> None:
    run = Run(SCHEDULERS["StepLR"], "SGD")
    run.optimizer.param_groups[0].update(weight_decay=0.1, nesterov=True)
    run.join(weight_decay=0.0, lr=7.0)

    joined = run.optimizer.param_groups[1]
    assert (joined["name"], joined["weight_decay"], joined["nesterov"]) == ("new", 0.0, True)
    assert joined["lr"] == SCALE * BASE


@pytest.mark.parametrize("name", ["OneCycleLR", "CyclicLR"])
def test_a_momentum_that_the_scheduler_moves_is_the_leaders(name: str) -> None:
    run = Run(SCHEDULERS[name], "SGD")
    stale = copy.copy(run.optimizer.param_groups[0])
    for _ in range(5):
        run.step()
    run.join(momentum=stale["momentum"], max_momentum=0.5)

    head, joined = run.optimizer.param_groups
    assert stale["momentum"] != head["momentum"] == joined["momentum"]
    assert joined["max_momentum"] == head["max_momentum"]


def test_two_schedulers_of_one_optimizer_are_both_extended() -> None:
    run = Run(SCHEDULERS["ExponentialLR"], "SGD")
    second = LambdaLR(run.optimizer, huggingface_cosine)
    new = {"params": [nn.Parameter(torch.ones(2))], "name": "new"}

    add_group(run.optimizer, [run.scheduler, second], new, scale=SCALE)

    second.step()
    assert run.rates()[1] == close(SCALE * run.rates()[0])


def test_a_rate_that_is_a_tensor_is_scaled_and_not_shared() -> None:
    optimizer = AdamW([nn.Parameter(torch.ones(2))], lr=torch.tensor(BASE), foreach=False)
    scheduler = ExponentialLR(optimizer, 0.5)
    new = {"params": [nn.Parameter(torch.ones(2))], "name": "new"}

    add_group(optimizer, [scheduler], new, scale=0.5)
    for _ in range(3):
        scheduler.step()

    rates = [float(group["lr"]) for group in optimizer.param_groups]
    assert rates == [pytest.approx(BASE / 8), pytest.approx(BASE / 16)]


def test_the_given_rate_is_the_one_before_any_schedule() -> None:
    run = Run(SCHEDULERS["LinearLR"], "SGD")
    assert base_lr(run.optimizer.param_groups[0]) == BASE
    run = Run(SCHEDULERS["OneCycleLR"], "SGD")
    assert base_lr(run.optimizer.param_groups[0]) == BASE
    assert base_lr({"lr": 0.5}) == 0.5


class PerGroup(LRScheduler):
    """A scheduler as users write them: with a list of its own beside the groups."""

    def __init__(self, optimizer: Optimizer, entries: Any) -> None:
        self.entries = entries
        super().__init__(optimizer)

    def get_lr(self) -> list[Any]:
        return list(self.base_lrs)


class GradualWarmup(LRScheduler):
    """A well-known scheduler that holds another one, under a name of its own."""

    def __init__(self, optimizer: Optimizer, after: LRScheduler, steps: int) -> None:
        self.after, self.steps = after, steps
        super().__init__(optimizer)

    def get_lr(self) -> list[Any]:
        if self.last_epoch > self.steps:
            return self.after.get_last_lr()
        return [rate * (self.last_epoch + 1) / (self.steps + 1) for rate in self.base_lrs]

    def step(self, epoch: int | None = None) -> None:
        if getattr(self, "last_epoch", -1) >= self.steps:
            self.after.step()
        super().step()


class TimmLike:
    """No LRScheduler at all, like those of timm."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.base_values = [group["lr"] for group in optimizer.param_groups]


@pytest.mark.parametrize("scales", [(1.0,), (1.0, 0.1)])
@pytest.mark.parametrize("make", [*SCHEDULERS.values(), *FLOORED.values()])
def test_every_scheduler_of_torch_is_known(make: Make, scales: Sequence[float]) -> None:
    run = Run(make, "SGD", scales)
    refuse_unknown_lists(run.scheduler, len(scales))


@pytest.mark.parametrize(
    "entries", [[0.1, 0.2], [abs, abs], [torch.tensor(0.1), None], [None, 1.5]]
)
def test_a_users_scheduler_with_a_list_of_its_own_is_refused_by_its_name(entries: Any) -> None:
    run = Run(lambda o, _: PerGroup(o, entries), "SGD", (1.0, 0.1))
    with pytest.raises(ValueError, match=r"PerGroup keeps `entries` .* 2 parameter groups"):
        refuse_unknown_lists(run.scheduler, 2)


def test_it_is_refused_inside_another_one_as_well() -> None:
    def make(optimizer: Optimizer, _: Sequence[float]) -> LRScheduler:
        inner = PerGroup(optimizer, [0.1, 0.2])
        return SequentialLR(optimizer, [ConstantLR(optimizer), inner], milestones=[3])

    with pytest.raises(ValueError, match="PerGroup"):
        refuse_unknown_lists(Run(make, "SGD", (1.0, 0.1)).scheduler, 2)


def test_a_scheduler_that_is_none_of_torchs_is_refused_by_the_same_rule() -> None:
    run = Run(SCHEDULERS["StepLR"], "SGD")
    with pytest.raises(ValueError, match="TimmLike keeps `base_values`"):
        refuse_unknown_lists(TimmLike(run.optimizer), 1)


@pytest.mark.parametrize("entries", [[30, 60], (0.85, 0.95), [0.1, 0.2, 0.3], ["a", "b"], 0.1])
def test_what_has_no_entry_per_group_is_no_reason_to_refuse(entries: Any) -> None:
    run = Run(lambda o, _: PerGroup(o, entries), "SGD", (1.0, 0.1))
    refuse_unknown_lists(run.scheduler, 2)


@at_any_step
def test_a_users_scheduler_around_another_is_extended_with_it(start: int) -> None:
    def make(optimizer: Optimizer, _: Sequence[float]) -> LRScheduler:
        return GradualWarmup(optimizer, CosineAnnealingWarmRestarts(optimizer, 6), steps=6)

    run = Run(make, "SGD")
    refuse_unknown_lists(run.scheduler, 1)
    for step in range(STEPS):
        if step == start:
            run.join()
        if step >= start:
            leader, follower = run.rates()
            assert follower == close(SCALE * leader)
        run.step()

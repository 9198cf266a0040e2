"""The rate of a new group rises, and nobody but the optimizer's step sees it."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CyclicLR,
    ExponentialLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    SequentialLR,
)

from lit_finetune.optim.group_warmup import Warmup, WarmupRamp

STEPS = 6


class Run:
    """Two parameters in groups of their own, with a gradient of one; the second warms up."""

    def __init__(self, make: Callable[..., Optimizer] = SGD, **options: Any) -> None:
        self.old = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.new = nn.Parameter(torch.zeros((), dtype=torch.float64))
        groups = [{"params": [self.old], "lr": 0.5}, {"params": [self.new], "lr": 0.25}]
        self.optimizer = make(groups, lr=0.5, **options)
        self.step = 0
        self.warmup = Warmup([self.optimizer], lambda: self.step)

    def steps(self, number: int = STEPS) -> Iterator[int]:
        for _ in range(number):
            self.old.grad, self.new.grad = torch.ones_like(self.old), torch.ones_like(self.new)
            self.optimizer.step()
            self.step += 1
            yield self.step

    def rates(self) -> list[float]:
        return [group["lr"] for group in self.optimizer.param_groups]


def test_the_new_group_moves_with_the_risen_rate_exactly_and_the_others_with_theirs() -> None:
    run = Run()
    run.step = 7
    run.warmup.add([run.new], WarmupRamp(7, 3))
    expected = 0.0
    for number, _ in enumerate(run.steps(), start=1):
        expected -= 0.25 * min(1.0, number / 3)
        assert run.old.item() == -0.5 * number
        assert run.new.item() == expected
        assert run.rates() == [0.5, 0.25], "nominal between the steps"


SCHEDULERS: dict[str, Callable[[Optimizer], LRScheduler]] = {
    "exponential": lambda o: ExponentialLR(o, 0.7),
    "cosine": lambda o: CosineAnnealingLR(o, 4),
    "linear": lambda o: LinearLR(o, 0.1, total_iters=4),
    "one cycle": lambda o: OneCycleLR(o, max_lr=[0.5, 0.25], total_steps=10),
    "cyclic": lambda o: CyclicLR(o, 0.01, 0.5, step_size_up=2, cycle_momentum=False),
    "sequential": lambda o: SequentialLR(o, [ExponentialLR(o, 0.5), ExponentialLR(o, 0.9)], [3]),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_no_scheduler_is_disturbed(name: str) -> None:
    plain, warm = Run(momentum=0.9), Run(momentum=0.9)
    warm.warmup.add([warm.new], WarmupRamp(0, 4))
    schedulers = [SCHEDULERS[name](run.optimizer) for run in (plain, warm)]
    for _ in zip(plain.steps(), warm.steps(), strict=True):
        for scheduler in schedulers:
            scheduler.step()
        assert warm.rates() == plain.rates()
    assert warm.old.item() == plain.old.item()
    assert abs(warm.new.item()) < abs(plain.new.item())


def test_after_its_steps_a_group_is_as_if_it_had_never_warmed_up() -> None:
    plain, warm = Run(Adam), Run(Adam)
    warm.warmup.add([warm.new], WarmupRamp(-10, 10))
    for _ in zip(plain.steps(), warm.steps(), strict=True):
        assert warm.new.item() == plain.new.item()


def test_a_rate_that_is_a_tensor_is_put_back_as_the_same_tensor() -> None:
    run = Run()
    rate = torch.tensor(0.25, dtype=torch.float64)
    run.optimizer.param_groups[1]["lr"] = rate
    run.warmup.add([run.new], WarmupRamp(0, 2))
    next(run.steps())
    assert run.optimizer.param_groups[1]["lr"] is rate
    assert (rate.item(), run.new.item()) == (0.25, -0.125)


def test_a_step_that_breaks_off_leaves_no_lowered_rate_once_it_is_put_back() -> None:
    run = Run()
    run.warmup.add([run.new], WarmupRamp(0, 4))

    def breaks() -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.optimizer.step(breaks)
    run.warmup.restore_rates()

    assert run.rates() == [0.5, 0.25]


def test_a_warm_up_that_is_removed_leaves_the_optimizer_alone() -> None:
    run = Run()
    run.warmup.add([run.new], WarmupRamp(0, 4))
    run.warmup.remove()
    next(run.steps())
    assert run.new.item() == -0.25

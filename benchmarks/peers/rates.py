"""Learning rates: does the backbone keep its share, and does each parameter have one at all?"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch.optim.lr_scheduler as schedulers
from lightning.pytorch.cli import LightningCLI
from torch.optim import SGD, Optimizer

from benchmarks.peers.systems import WHOLE_BACKBONE, Request, System
from benchmarks.peers.training import BATCHES, LR, Run, TinyNet, make_model, train

TOLERANCE = 1e-6
"""Rounding in the last places of a rate is no fault."""


@dataclass(frozen=True)
class Scheduled:
    """A scheduler of torch with arguments that make it move in four epochs."""

    make: Callable[[Optimizer], Any]
    interval: str = "epoch"


def halves(optimizer: Optimizer) -> list[Any]:
    """A constant start, then a decay: for those that hold others."""
    return [
        schedulers.ConstantLR(optimizer, factor=0.5, total_iters=2),
        schedulers.ExponentialLR(optimizer, gamma=0.8),
    ]


STEPS = 4 * BATCHES
SCHEDULERS: Mapping[str, Scheduled] = {
    "LambdaLR": Scheduled(partial(schedulers.LambdaLR, lr_lambda=lambda e: 0.9**e)),
    "MultiplicativeLR": Scheduled(partial(schedulers.MultiplicativeLR, lr_lambda=lambda e: 0.9)),
    "StepLR": Scheduled(partial(schedulers.StepLR, step_size=1, gamma=0.5)),
    "MultiStepLR": Scheduled(partial(schedulers.MultiStepLR, milestones=[1, 3], gamma=0.5)),
    "ConstantLR": Scheduled(partial(schedulers.ConstantLR, factor=0.5, total_iters=2)),
    "LinearLR": Scheduled(partial(schedulers.LinearLR, start_factor=0.25, total_iters=3)),
    "ExponentialLR": Scheduled(partial(schedulers.ExponentialLR, gamma=0.8)),
    "PolynomialLR": Scheduled(partial(schedulers.PolynomialLR, total_iters=6, power=2.0)),
    "CosineAnnealingLR": Scheduled(partial(schedulers.CosineAnnealingLR, T_max=4)),
    "CosineAnnealingWarmRestarts": Scheduled(
        partial(schedulers.CosineAnnealingWarmRestarts, T_0=3)
    ),
    "CyclicLR": Scheduled(
        partial(schedulers.CyclicLR, base_lr=0.01, max_lr=LR, step_size_up=4), "step"
    ),
    "OneCycleLR": Scheduled(partial(schedulers.OneCycleLR, max_lr=LR, total_steps=STEPS), "step"),
    "ReduceLROnPlateau": Scheduled(
        partial(schedulers.ReduceLROnPlateau, patience=0, threshold=0.5)
    ),
    "SequentialLR": Scheduled(
        lambda optimizer: schedulers.SequentialLR(optimizer, halves(optimizer), milestones=[2])
    ),
    "ChainedScheduler": Scheduled(
        lambda optimizer: schedulers.ChainedScheduler(halves(optimizer), optimizer)
    ),
}


def under_scheduler(system: System, folder: Path, *, name: str) -> Iterator[float]:
    """The backbone should have a tenth of the head's rate at every step, wherever that goes."""
    request, scheduled = Request(), SCHEDULERS[name]
    model = make_model(system, request, make_scheduler=scheduled.make, interval=scheduled.interval)
    run = train(system, request, folder, model=model)
    yield largest_rate_error(run, request)


def largest_rate_error(run: Run, request: Request) -> float:
    """How far, relatively, the backbone's rate is from its share of the head's at any step."""
    started = {name: epoch for epoch, names in request.unfreeze.items() for name in names}
    scale = request.scale or 1.0
    return max(
        abs(rates.get(f"{name}.conv.weight", 0.0) / (scale * rates["head.weight"]) - 1)
        for epoch, rates in run.seen.rates
        for name, start in started.items()
        if epoch >= start
    )


def by_cli(system: System, folder: Path) -> Iterator[float]:
    """An optimizer that LightningCLI made, which holds all parameters in one group."""
    request = Request(max_epochs=3)
    arguments = ["--optimizer=torch.optim.SGD", f"--optimizer.lr={LR}"]
    cli = LightningCLI(PlainNet, run=False, args=arguments, save_config_callback=None)
    assert isinstance(cli.model, TinyNet)
    system.prepare(cli.model, request)
    run = train(system, request, folder, model=cli.model)
    head = max(abs(rates["head.weight"] / LR - 1) for _, rates in run.seen.rates)
    yield max(head, largest_rate_error(run, request))


class PlainNet(TinyNet):
    """The network without arguments, for the command line."""

    def __init__(self) -> None:
        super().__init__()


BACKBONE_RATES = {"backbone.layer2": 0.03, "backbone.layer1": 0.003}
OWN_RATES = {"head.weight": 0.3, "head.bias": 0.1, **BACKBONE_RATES}


def own_groups(model: TinyNet) -> Optimizer:
    """Groups with rates of the user's choice, for all parameters."""
    groups = [
        {"params": [p for name, p in model.named_parameters() if name.startswith(part)], "lr": rate}
        for part, rate in OWN_RATES.items()
    ]
    return SGD(groups, lr=LR)


def keeps_own_groups(system: System, folder: Path) -> Iterator[float]:
    """Once all trains, every parameter should have the rate that the module gave it."""
    request = Request(scale=None, own_rates=BACKBONE_RATES)
    model = make_model(system, request, make_optimizer=own_groups)
    run = train(system, request, folder, model=model)
    yield max(
        abs(rates.get(name, 0.0) / rate - 1)
        for epoch, rates in run.seen.rates
        if epoch >= max(request.unfreeze)
        for name, _ in run.model.named_parameters()
        for part, rate in OWN_RATES.items()
        if name.startswith(part)
    )


def fresh_norms(system: System, folder: Path) -> Iterator[float]:
    """Two blocks with equal fresh norm layers start together; all should be in the optimizer."""
    request = Request(WHOLE_BACKBONE, max_epochs=2)
    model = make_model(system, request, width=8)
    run = train(system, request, folder, model=model)
    in_optimizer = run.seen.rates[-1][1]
    yield float(sum(name not in in_optimizer for name, _ in run.model.named_parameters()))

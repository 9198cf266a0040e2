"""Hugging Face's own warm-up schedules move a new group in proportion, at every step."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import AdamW, Optimizer

from tests.callbacks.tiny import BATCHES, Tiny, fit

STEPS = 3 * BATCHES
SCHEDULE = [
    {"modules": "head"},
    {"step": 2, "modules": "layer2", "lr_scale": 0.1},  # amid the warm-up
    {"step": 7, "modules": "layer1", "lr_scale": 0.01},
]
WARMUP = {"num_warmup_steps": 4}
WHOLE = {**WARMUP, "num_training_steps": STEPS}
SCHEDULES: dict[str, dict[str, Any]] = {
    "get_constant_schedule": {},
    "get_constant_schedule_with_warmup": WARMUP,
    "get_linear_schedule_with_warmup": WHOLE,
    "get_cosine_schedule_with_warmup": WHOLE,
    "get_cosine_with_hard_restarts_schedule_with_warmup": {**WHOLE, "num_cycles": 2},
    "get_cosine_with_min_lr_schedule_with_warmup": {**WHOLE, "min_lr": 0.001},
    "get_cosine_with_min_lr_schedule_with_warmup_lr_rate": {**WHOLE, "min_lr": 0.001},
    "get_polynomial_decay_schedule_with_warmup": WHOLE,
    "get_inverse_sqrt_schedule": WARMUP,
    "get_wsd_schedule": {**WHOLE, "num_decay_steps": 4},
}


class Scheduled(Tiny):
    """With a schedule that goes by steps."""

    def __init__(self, schedule: Callable[[Optimizer], Any]) -> None:
        super().__init__(partial(AdamW, lr=0.1))
        self.schedule = schedule

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self.parameters())
        return [optimizer], [{"scheduler": self.schedule(optimizer), "interval": "step"}]


class Rates(Callback):
    """The rate of each group, as each batch finds it."""

    def __init__(self) -> None:
        self.steps: list[list[float]] = []

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        self.steps.append([group["lr"] for group in optimizer.param_groups])


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_new_groups_rate_is_its_share_of_the_leaders_at_every_step(name: str) -> None:
    optimization = pytest.importorskip("transformers.optimization")
    if not hasattr(optimization, name):
        pytest.skip(f"this transformers has no {name}")
    make = partial(getattr(optimization, name), **SCHEDULES[name])
    alone, moving = Rates(), Rates()
    fit(Scheduled(make), [{"modules": "head"}], alone)
    fit(Scheduled(make), SCHEDULE, moving)

    assert [len(rates) for rates in moving.steps] == [1] * 2 + [2] * 5 + [3] * 5
    assert [rates[0] for rates in moving.steps] == [rates[0] for rates in alone.steps]
    assert name == "get_constant_schedule" or len({rates[0] for rates in alone.steps}) > 4
    for leader, *others in moving.steps:
        expected = [leader * scale for scale in (0.1, 0.01)[: len(others)]]
        assert others == pytest.approx(expected, rel=1e-12, abs=1e-18)

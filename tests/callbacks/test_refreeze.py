"""Blocks freeze again, new groups warm up, and the best weights of a phase come back."""

from collections.abc import Callable
from csv import DictReader
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from tests.callbacks.tiny import BATCHES, HEAD, ONE, TWO, Steps, Tiny, fit, scored, stalls

REFREEZE = [
    HEAD,
    {"step": 2, "modules": "layer2"},
    {"step": 5, "freeze": "head"},
    {"epoch": 2, "modules": "head", "freeze": "layer2"},
]
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "adamw": partial(AdamW, lr=0.1, weight_decay=0.1),
    "momentum": partial(SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_frozen_again_stands_still_in_eval_mode_without_state(name: str) -> None:
    class Held(Steps):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            super().on_train_batch_end(trainer, pl_module)
            frozen = [p for p in pl_module.parameters() if not p.requires_grad]
            assert all(p.grad is None and p not in trainer.optimizers[0].state for p in frozen)

    steps = Held()
    fit(Tiny(OPTIMIZERS[name]), REFREEZE, steps)

    expected = [ONE] * 2 + [TWO] * 3 + ["layer2"] * 3 + [ONE] * 4
    assert (steps.moved, steps.training) == (expected, expected)


def test_what_comes_back_starts_without_momentum_at_a_rate_in_proportion() -> None:
    class Counts(Callback):
        def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            self.steps = int(trainer.optimizers[0].state[pl_module.fc.weight]["step"])

    steps, counts = Steps(), Counts()
    trainer = fit(Tiny(OPTIMIZERS["adamw"]), REFREEZE, steps, counts)

    assert counts.steps == 4
    assert [group["name"] for group in trainer.optimizers[0].param_groups] == ["head"]
    assert steps.rates[-2] == [0.1 * 0.5**2]


def test_norms_of_a_block_that_is_frozen_again_train_on_with_train_bn() -> None:
    class Norms(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            trains = {n for n, p in pl_module.named_parameters() if p.requires_grad}
            held = {id(p) for g in trainer.optimizers[0].param_groups for p in g["params"]}
            assert held == {id(p) for p in pl_module.parameters() if p.requires_grad}
            self.trained = trains

    norms = Norms()
    schedule = [{"modules": ["head", "layer2"]}, {"step": 3, "freeze": "layer2"}]
    fit(Tiny(), schedule, norms, train_bn=True)

    frozen = {"layer1.0.weight", "layer1.0.bias", "layer2.0.weight", "layer2.0.bias"}
    assert norms.trained == {name for name, _ in Tiny().named_parameters()} - frozen


class Exact(Steps):
    """Compare what each step did with plain descent at the rate that is due then."""

    def __init__(self, rises: dict[str, tuple[int, int]]) -> None:
        super().__init__()
        self.rises = rises

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        super().on_train_batch_end(trainer, pl_module)
        for name, p in pl_module.named_parameters():
            if p.grad is not None:
                begin, length = self.rises[name.split(".")[0]]
                rate = 0.1 * min(1.0, (trainer.global_step - begin) / length)
                assert torch.equal(p, self.before[name].add(p.grad, alpha=-rate)), name


def test_a_warm_up_gives_the_rate_of_each_step_and_shows_the_nominal_one(tmp_path: Path) -> None:
    schedule = [
        {**HEAD, "warmup_steps": 2},
        {"step": 3, "modules": "layer2", "warmup_steps": 4},
    ]
    exact, monitor = Exact({"fc": (0, 2), "layer2": (3, 4)}), LearningRateMonitor("step")
    logger = CSVLogger(str(tmp_path))
    model = Tiny(gamma=1.0)
    fit(model, schedule, monitor, exact, logger=logger, log_every_n_steps=1)

    assert exact.moved == [ONE] * 3 + [TWO] * 9
    assert exact.rates == [[0.1]] * 3 + [[0.1, 0.1]] * 9
    with Path(logger.log_dir, "metrics.csv").open() as file:
        shown = [v for row in DictReader(file) for k, v in row.items() if k.startswith("lr-") and v]
    assert shown == ["0.1"] * len(shown)
    assert len(shown) >= 12


def test_schedulers_see_the_nominal_rates_during_a_warm_up() -> None:
    layer2 = {"step": 2, "modules": "layer2", "lr_scale": 0.5}
    plain, warm = Steps(), Steps()
    fit(Tiny(), [HEAD, layer2], plain)
    fit(Tiny(), [HEAD, {**layer2, "warmup_steps": 9}], warm)
    assert warm.rates == plain.rates
    assert warm.rates[-2] == [0.1 * 0.5**2, 0.05 * 0.5**2]


class Keep(Callback):
    """Everything as it is after each validation, and as each batch finds it."""

    def __init__(self) -> None:
        self.validated: list[dict[str, Tensor]] = []
        self.found: list[dict[str, Tensor]] = []

    def everything(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Tensor]:
        state = trainer.optimizers[0].state.get(pl_module.fc.weight, {})
        kept = {**pl_module.state_dict(), **state}
        return {name: value.clone() for name, value in kept.items()}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.validated.append(self.everything(trainer, pl_module))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.found.append(self.everything(trainer, pl_module))


MOMENTUM = "momentum_buffer"


def differing(left: dict[str, Tensor], right: dict[str, Tensor]) -> set[str]:
    return {name for name in left if not torch.equal(left[name], right[name])}


@pytest.mark.parametrize(("scores", "best"), [((3, 1, 2, 2), 1), ((1, 2, 2, 2), 0)])
def test_the_best_weights_of_a_phase_come_back_bit_for_bit(
    scores: tuple[int, ...], best: int
) -> None:
    keep = Keep()
    start = {"modules": ["head", "layer2"]}
    back = {**stalls(), "modules": "layer1", "restore_best": True}
    fit(scored(*scores, make_optimizer=OPTIMIZERS["momentum"]), [start, back], keep, max_epochs=5)

    end = best + 2  # two validations without a better value end the phase
    at_best, at_end = keep.validated[best], keep.validated[end]
    restored = keep.found[(end + 1) * BATCHES]
    assert differing(restored, at_best) == {MOMENTUM}, "weights and statistics are the best's"
    assert not differing({MOMENTUM: restored[MOMENTUM]}, at_end), "the optimizer's state is kept"
    assert {name.split(".")[0] for name in differing(restored, at_end)} == {"fc", "layer2"}


def test_an_epoch_that_ends_a_phase_early_brings_the_best_weights_back_as_well() -> None:
    keep = Keep()
    schedule = [
        HEAD,
        {**stalls(patience=9), "modules": "layer2", "restore_best": True},
        {"epoch": 2, "modules": "layer1"},
    ]
    fit(scored(1), schedule, keep)
    assert not differing(keep.found[2 * BATCHES], keep.validated[0])


def test_without_restore_best_the_last_weights_stay() -> None:
    keep = Keep()
    fit(scored(1), [HEAD, {**stalls(patience=1), "modules": "layer2"}], keep)
    assert not differing(keep.found[2 * BATCHES], keep.validated[1])
    assert differing(keep.found[2 * BATCHES], keep.validated[0])

"""Phases begin at steps, after shares of a run and at plateaus."""

import re
from typing import Any

import pytest
from lightning.pytorch import Trainer

from lit_finetune.callbacks import FreezeUnfreezeCallback
from tests.callbacks.tiny import (
    ALL,
    BATCHES,
    HEAD,
    ONE,
    TWO,
    Steps,
    Tiny,
    fit,
    loader,
    moved_in,
    scored,
    stalls,
)


def test_a_phase_begins_at_its_step_amid_an_epoch() -> None:
    schedule = [HEAD, {"step": 3, "modules": "layer2"}, {"step": 10, "modules": "all"}]
    assert moved_in(schedule) == [ONE] * 3 + [TWO] * 7 + [ALL] * 2


def test_a_phase_begins_after_a_share_of_the_run() -> None:
    schedule = [HEAD, {"at": 0.25, "modules": "layer2"}, {"at": 0.8, "modules": "all"}]
    assert moved_in(schedule) == [ONE] * 3 + [TWO] * 7 + [ALL] * 2


def test_a_share_counts_the_steps_of_the_optimizer_and_not_the_batches() -> None:
    schedule = [HEAD, {"at": 0.5, "modules": "layer2"}]
    moved = moved_in(schedule, accumulate_grad_batches=2, max_epochs=4)
    assert moved == ["", ONE] * 4 + ["", TWO] * 4


def test_a_phase_begins_at_its_epoch() -> None:
    assert moved_in([HEAD, {"epoch": 2, "modules": "layer2"}]) == [ONE] * 8 + [TWO] * 4


def test_a_phase_begins_when_a_metric_has_stalled_and_counts_anew() -> None:
    schedule = [HEAD, {**stalls(), "modules": "layer2"}, {**stalls(), "modules": "all"}]

    # Better, twice nothing better; then a new phase, whose first value counts as better.
    moved = moved_in(schedule, scored(3, 2, 2, 2, 9, 9, 9), max_epochs=8)

    assert moved == [ONE] * 16 + [TWO] * 12 + [ALL] * 4


def test_more_may_be_better() -> None:
    schedule = [HEAD, {**stalls(mode="max", patience=1), "modules": "all"}]
    assert moved_in(schedule, scored(1, 2, 3, 3, 4), max_epochs=5) == [ONE] * 16 + [ALL] * 4


def test_a_phase_that_gets_better_ends_after_its_epochs() -> None:
    schedule = [HEAD, {**stalls(max_epochs=2, mode="max"), "modules": "all"}]
    assert moved_in(schedule, Tiny()) == [ONE] * 8 + [ALL] * 4


def test_a_plateau_in_mid_epoch_begins_the_next_phase_there() -> None:
    schedule = [HEAD, {**stalls(patience=1), "modules": "all"}]
    moved = moved_in(schedule, scored(1), val_check_interval=1, max_epochs=1)
    assert moved == [ONE] * 2 + [ALL] * 2


def test_no_phase_begins_while_gradients_wait_for_their_step() -> None:
    schedule = [HEAD, {**stalls(patience=2), "modules": "all"}]
    options = {"val_check_interval": 1, "accumulate_grad_batches": 2, "max_epochs": 2}
    # The third validation, after the third batch, says so; the fourth batch makes the step.
    assert moved_in(schedule, scored(1), **options) == ["", ONE] * 2 + ["", ALL] * 2


def test_the_unsettled_metric_of_the_sanity_check_does_not_count() -> None:
    schedule = [HEAD, {**stalls(patience=1), "modules": "all"}]
    model = Tiny(metric=lambda number: 5 - number if model.global_step else 0)
    assert moved_in(schedule, model) == [ONE] * 12


def test_a_strategy_may_wait_for_plateaus() -> None:
    schedule = {"gradual": stalls(patience=1)}
    assert moved_in(schedule, scored(1), max_epochs=5) == [ONE] * 8 + [TWO] * 8 + [ALL] * 4


def test_a_metric_that_is_never_logged_is_refused_when_validation_first_ends() -> None:
    steps = Steps()
    plateau = {"monitor": "val/scor", "patience": 1}
    schedule = [HEAD, {"epoch": 2, "modules": "layer2"}, {"on_plateau": plateau, "modules": "all"}]
    message = "'val/scor', which is not logged when validation ends. Did you mean 'val/score'"
    with pytest.raises(ValueError, match=message):
        fit(Tiny(), schedule, steps)
    assert len(steps.moved) == BATCHES


def test_a_plateau_without_validation_is_refused_before_training() -> None:
    steps = Steps()
    with pytest.raises(ValueError, match="waits for a metric of validation, but there is none"):
        fit(Tiny(), [HEAD, {**stalls(), "modules": "all"}], steps, limit_val_batches=0)
    assert not steps.moved


@pytest.mark.parametrize(
    ("entry", "options", "message"),
    [
        ({"step": 12}, {}, "step 12: never reached, the last of 12 steps is step 11"),
        ({"step": 6}, {"accumulate_grad_batches": 2}, "the last of 6 steps is step 5"),
        ({"step": 5}, {"max_steps": 5}, "never reached"),
        ({"at": 0.5}, {"max_epochs": -1}, "50%: a share of an unknown number of steps"),
        ({"epoch": 3}, {}, "epoch 3: never reached"),
        ({"epoch": 1, "freeze": "fc"}, {}, "'layer2' overlaps"),
    ],
)
def test_what_cannot_be_followed_is_refused_before_the_first_step(
    entry: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    steps = Steps()
    schedule = [{"modules": ["head", "layer2"]}, {**entry, "modules": "layer2"}]
    if "overlaps" not in message:
        schedule[0] = HEAD
    with pytest.raises(ValueError, match=re.escape(message)):
        fit(Tiny(), schedule, steps, **options)
    assert not steps.moved


def told(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    return [r.getMessage() for r in caplog.records if text in r.getMessage()]


def test_each_phase_is_told_with_its_beginning(caplog: pytest.LogCaptureFixture) -> None:
    schedule = [
        HEAD,
        {"at": 0.25, "modules": "layer2"},
        {**stalls(patience=1), "modules": "layer1", "freeze": "head", "restore_best": True},
    ]
    with caplog.at_level("INFO"):
        fit(scored(1), schedule, max_epochs=4)

    lines = [line.split(";")[0] for line in told(caplog, "parameters train")]
    assert lines == [
        "Epoch 0: training head (since epoch 0)",
        "Epoch 1: training layer2 (since 25% = step 4)",
        "Epoch 3: training layer1 (freezes head) (since step 12, when val/score stalls"
        " (patience 1))",
    ]
    assert told(caplog, "Back to the best weights") == [
        "Back to the best weights of the phase, at 1."
    ]


def test_phases_that_a_run_does_not_reach_are_told_in_a_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    schedule = [
        HEAD,
        {**stalls(patience=9), "modules": "layer2"},
        {**stalls(), "modules": "layer1", "freeze": "head"},
    ]
    with caplog.at_level("INFO"):
        trainer = fit(Tiny(), schedule)

    assert told(caplog, "before these phases") == [
        "The training ended before these phases began: layer2 (when val/score stalls (patience"
        " 9)), layer1 (freezes head) (when val/score stalls (patience 2))."
    ]
    assert (trainer.max_epochs, trainer.current_epoch) == (3, 3)


def test_a_run_that_reaches_all_phases_says_nothing_of_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level("INFO"):
        fit(Tiny(), [HEAD, {"step": 1, "modules": "layer2"}])
    assert not told(caplog, "before these phases")


def test_a_second_fit_goes_on_in_its_phase_and_a_second_trainer_begins_anew() -> None:
    schedule = [HEAD, {**stalls(patience=1), "modules": "all"}]
    steps = Steps()
    trainer = fit(scored(1), schedule, steps, max_epochs=2)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(trainer.lightning_module, loader(), loader())
    assert steps.moved == [ONE] * 8 + [ALL] * 4

    callback = trainer.callbacks[0]  # type: ignore[attr-defined]
    again = Steps()
    other = Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, callbacks=[callback, again]
    )
    other.fit(scored(1), loader(), loader())
    assert again.moved == [ONE] * 4


def test_a_trial_run_may_use_the_list_of_a_long_one() -> None:
    schedule = [
        {**HEAD, "warmup_steps": 10},
        {"at": 0.3, "modules": "layer2"},
        {"step": 500, "freeze": "head"},
        {**stalls(), "modules": "all", "restore_best": True},
    ]
    assert moved_in(schedule, fast_dev_run=True) == [ONE]


def test_validate_alone_counts_no_plateau() -> None:
    callback = FreezeUnfreezeCallback([HEAD, {**stalls(patience=1), "modules": "all"}])
    trainer = Trainer(logger=False, enable_progress_bar=False, callbacks=[callback])
    trainer.validate(Tiny(), loader(), verbose=False)
    assert callback.state_dict() == {}

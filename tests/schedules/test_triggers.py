import json
import math
import re
from typing import Any

import pytest

from lit_finetune.schedules.triggers import (
    Plateau,
    Position,
    Progress,
    Stall,
    is_over,
    observe,
    refuse_unlogged,
)


def after(values: list[float], **options: Any) -> Stall:
    stall = Stall()
    for value in values:
        stall = observe(stall, value, Plateau(monitor="m", **options))
    return stall


@pytest.mark.parametrize(
    ("values", "options", "count"),
    [
        ([], {}, 0),
        ([1.0], {}, 0),
        ([1.0, 1.0], {}, 1),
        ([1.0, 0.9, 0.95, 0.92], {}, 2),
        ([1.0, 1.1, 1.2, 0.9], {}, 0),
        ([0.5, 0.6, 0.7], {"mode": "max"}, 0),
        ([0.5, 0.6, 0.6, 0.4], {"mode": "max"}, 2),
        ([1.0, 0.95, 0.91], {"min_delta": 0.1}, 2),
        ([1.0, 0.95, 0.89], {"min_delta": 0.1}, 0),
        ([1.0, math.nan, math.nan], {}, 2),
        ([math.nan, math.nan, 1.0], {}, 0),
        ([math.inf, 2.0], {}, 0),
    ],
)
def test_it_counts_the_validations_that_bring_nothing_better(
    values: list[float], options: dict[str, Any], count: int
) -> None:
    assert after(values, **options).count == count


def test_the_best_value_is_the_best_even_if_it_is_too_little_better_to_count() -> None:
    assert after([1.0, 0.95, 0.97], min_delta=0.1) == Stall(best=0.95, mark=1.0, count=2)


def test_a_metric_that_is_never_a_number_has_no_best_value() -> None:
    assert after([math.nan]).best is None


@pytest.mark.parametrize(
    ("count", "epochs", "expected"),
    [(0, 0, False), (1, 4, False), (2, 1, True), (3, 1, True), (0, 5, True), (0, 6, True)],
)
def test_a_phase_is_over_when_patience_or_its_epochs_are_at_an_end(
    count: int, epochs: int, expected: bool
) -> None:
    plateau = Plateau(monitor="m", patience=2, max_epochs=5)
    assert is_over(plateau, Stall(count=count), epochs=epochs) is expected


def test_without_max_epochs_a_phase_that_gets_better_goes_on() -> None:
    assert not is_over(Plateau(monitor="m"), Stall(), epochs=10**6)


def test_a_new_phase_is_watched_from_its_own_beginning() -> None:
    progress = Progress(phase_starts=(Position(0, 0),), stall=Stall(best=0.5, mark=0.5, count=3))

    moved = progress.advance(2, Position(4, 40))

    assert moved.phase_starts == ((0, 0), (4, 40), (4, 40))
    assert (moved.phase, moved.stall) == (2, Stall())


def test_a_run_never_goes_back() -> None:
    progress = Progress().advance(1, Position(3, 30))
    assert progress.advance(0, Position(5, 50)) is progress


def test_progress_survives_a_checkpoint() -> None:
    progress = Progress(phase_starts=(Position(0, 0), Position(1, 7)), stall=after([1.0, 2.0]))
    assert Progress.from_dict(json.loads(json.dumps(progress.to_dict()))) == progress


def test_a_metric_that_nobody_logs_is_refused_with_those_that_are_logged() -> None:
    refuse_unlogged(["val/loss"], {"val/loss": 1.0}, {"val/loss": 1.0, "val/acc": 1.0})
    message = "watches 'val/los', which is not logged when validation ends. Did you mean 'val/loss'"
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        refuse_unlogged(["val/acc", "val/los"], {"val/acc": 1.0}, {"val/loss": 1.0, "val/acc": 1.0})
    assert "Logged by then: val/acc, val/loss." in str(error.value)

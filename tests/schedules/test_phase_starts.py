"""When a plan's phases begin, what trains in them, and what cannot be planned."""

import re
from typing import Any

import pytest

from lit_finetune.blocks.block import Block
from lit_finetune.schedules.checkpoint_state import load_progress, save_progress
from lit_finetune.schedules.parse import parse_entries
from lit_finetune.schedules.plan import Plan, format_plan, make_plan
from lit_finetune.schedules.run_length import fit_to_length
from lit_finetune.schedules.triggers import Position, Progress, Stall

NAMES = ("stem", "layer1", "layer2", "layer3", "head")
BLOCKS = [Block(name, (name,), (f"{name}.0.weight", f"{name}.1.weight")) for name in NAMES]
STALLS = {"monitor": "val/loss", "patience": 2, "max_epochs": 5}


def plan_of(*entries: dict[str, Any], max_epochs: int | None = 10) -> Plan:
    return make_plan(parse_entries(entries), BLOCKS, max_epochs)


def head_and(**entry: Any) -> Plan:
    return plan_of({"modules": "head"}, {"modules": "layer3", **entry})


def trained(plan: Plan) -> list[list[str]]:
    """The blocks that train in each phase."""
    names = [plan.trainable(index) for index in range(len(plan.phases))]
    return [[block.name for block in BLOCKS if {*block.parameters} <= each] for each in names]


def test_what_is_frozen_again_trains_no_longer_and_may_come_back() -> None:
    plan = plan_of(
        {"modules": "head"},
        {"epoch": 1, "modules": "layer3"},
        {"epoch": 2, "freeze": "head"},
        {"epoch": 3, "modules": "head", "freeze": "layer3"},
        {"epoch": 4, "modules": "all"},
    )
    assert trained(plan) == [["head"], ["layer3", "head"], ["layer3"], ["head"], list(NAMES)]


def test_freezing_all_stops_whatever_trains_and_all_is_then_the_rest() -> None:
    plan = plan_of({"modules": ["head", "layer3"]}, {"epoch": 1, "freeze": "all", "modules": "all"})
    assert trained(plan)[1] == ["stem", "layer1", "layer2"]


def test_freezing_a_slice_stops_those_of_it_that_train() -> None:
    plan = plan_of({"modules": ["head", "layer3"]}, {"epoch": 1, "freeze": ":-1"})
    assert trained(plan)[1] == ["head"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"freeze": "layer2"}, "epoch 1: `freeze`: nothing of 'layer2' trains by then"),
        ({"freeze": "layr2"}, "`freeze`: 'layr2' matches nothing. Did you mean 'layer2'"),
        ({"freeze": "head"}, "epoch 1: nothing would train from then on"),
        ({"freeze": "all"}, "nothing would train from then on"),
        ({"freeze": "head", "modules": "head"}, "'head' overlaps: all of it trains from epoch 0"),
        ({"modules": "layer2", "freeze": "layer2"}, "nothing of 'layer2' trains by then"),
        ({"modules": "head"}, "'head' overlaps: all of it trains from epoch 0 on"),
    ],
)
def test_what_cannot_be_frozen_or_started_is_refused(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        plan_of({"modules": "head"}, {"epoch": 1, **entry})


@pytest.mark.parametrize(
    ("entry", "here", "expected"),
    [
        ({"epoch": 2}, (1, 99), 0),
        ({"epoch": 2}, (2, 0), 1),
        ({"step": 5}, (9, 4), 0),
        ({"step": 5}, (0, 5), 1),
        ({"on_plateau": STALLS}, (4, 99), 0),
        ({"on_plateau": STALLS}, (5, 99), 1),
    ],
)
def test_a_phase_begins_at_its_epoch_or_step_or_after_its_epochs(
    entry: dict[str, Any], here: tuple[int, int], expected: int
) -> None:
    progress = Progress(phase_starts=(Position(0, 0),))
    assert head_and(**entry).next_index(progress, Position(*here)) == expected


def test_a_phase_begins_when_the_metric_has_stalled_in_the_one_before() -> None:
    plan = plan_of(
        {"modules": "head"},
        {"on_plateau": STALLS, "modules": "layer3"},
        {"on_plateau": STALLS, "modules": "layer2"},
    )
    progress = Progress(phase_starts=(Position(0, 0),), stall=Stall(count=2))

    assert plan.next_index(progress, Position(1, 10)) == 1
    assert plan.next_index(progress.advance(1, Position(1, 10)), Position(1, 10)) == 1


def test_an_epoch_that_has_come_begins_what_waits_above_it_as_well() -> None:
    plan = plan_of(
        {"modules": "head"},
        {"on_plateau": STALLS, "modules": "layer3"},
        {"epoch": 3, "modules": "layer2"},
        {"on_plateau": STALLS, "modules": "layer1"},
    )
    start = Progress(phase_starts=(Position(0, 0),))

    assert plan.next_index(start, Position(2, 20)) == 0
    assert plan.next_index(start, Position(3, 30)) == 2
    assert plan.monitors(0) == plan.monitors(2) == ["val/loss"]
    assert plan.monitors(3) == []


def test_a_share_of_the_run_is_a_step_once_the_length_is_known() -> None:
    plan = head_and(at=0.3)
    assert plan.index_at(9, 10**6) == 0, "not yet"

    fitted = fit_to_length(plan, num_steps=800, epoch_steps=80)

    assert fitted.phases[1].entry.start_text == "30% = step 240"
    assert [fitted.index_at(9, step) for step in (239, 240)] == [0, 1]


@pytest.mark.parametrize(
    ("entries", "num_steps", "message"),
    [
        ([{"at": 0.3}], None, "30%: a share of an unknown number of steps"),
        ([{"step": 100}], 100, "step 100: never reached, the last of 100 steps is step 99"),
        ([{"epoch": 5}, {"step": 49}], 100, "step 49: it comes before epoch 5, which stands above"),
        ([{"step": 51}, {"epoch": 5}], 100, "epoch 5: it comes before step 51"),
        ([{"at": 0.5}, {"step": 40}], 100, "step 40: it comes before 50% = step 50"),
    ],
)
def test_a_plan_that_does_not_fit_the_length_of_the_run_is_refused(
    entries: list[dict[str, Any]], num_steps: int | None, message: str
) -> None:
    names = iter(("layer3", "layer2"))
    plan = plan_of({"modules": "head"}, *({**each, "modules": next(names)} for each in entries))
    with pytest.raises(ValueError, match=re.escape(message)):
        fit_to_length(plan, num_steps=num_steps, epoch_steps=10)


def test_any_share_comes_before_the_end_of_a_run_however_short() -> None:
    fitted = fit_to_length(head_and(at=0.99), num_steps=10, epoch_steps=5)
    assert fitted.phases[1].entry.step == 9


def test_phases_in_different_units_may_stand_in_the_order_in_which_they_come() -> None:
    plan = plan_of(
        {"modules": "head"},
        {"step": 10, "modules": "layer3"},
        {"on_plateau": STALLS, "modules": "layer2"},
        {"epoch": 2, "modules": "layer1"},
        {"at": 0.5, "modules": "stem"},
    )
    fitted = fit_to_length(plan, num_steps=100, epoch_steps=10)
    assert [fitted.index_at(*here) for here in ((0, 9), (1, 10), (2, 20), (5, 50))] == [0, 1, 3, 4]


def test_a_step_may_be_given_for_a_run_without_a_known_end() -> None:
    plan = fit_to_length(head_and(step=10**6), num_steps=None, epoch_steps=None)
    assert plan.index_at(0, 10**6) == 1


def test_the_table_says_when_each_phase_begins_and_what_it_freezes() -> None:
    plan = plan_of(
        {"modules": "head"},
        {"step": 5, "modules": "layer3", "freeze": "head"},
        {"on_plateau": {"monitor": "val/loss"}, "freeze": "layer3", "modules": ["head", "layer2"]},
        {"epoch": 9, "freeze": "head"},
    )
    sizes = {name: 10 for block in BLOCKS for name in block.parameters}

    lines = [re.split(r"\s{2,}", line.strip()) for line in format_plan(plan, sizes).splitlines()]

    assert lines == [
        ["begins", "starts to train", "trainable", "share"],
        ["epoch 0", "head", "20", "20.0%"],
        ["step 5", "layer3 (freezes head)", "20", "20.0%"],
        ["when val/loss stalls (patience 2)", "head, layer2 (freezes layer3)", "40", "40.0%"],
        ["epoch 9", "(freezes head)", "20", "20.0%"],
    ]


PROGRESS = Progress(phase_starts=(Position(0, 0),), stall=Stall(best=0.5, mark=0.5, count=1))


def resumed(before: Plan, after: Plan, progress: Progress = PROGRESS) -> Progress:
    return load_progress(after, save_progress(before, progress, train_bn=False), train_bn=False)


def test_a_run_goes_on_where_it_was() -> None:
    assert resumed(head_and(on_plateau=STALLS), head_and(on_plateau=STALLS)) == PROGRESS


def test_more_patience_keeps_the_count_and_another_metric_starts_anew() -> None:
    more, other = {**STALLS, "patience": 9}, {**STALLS, "monitor": "val/acc"}
    assert resumed(head_and(on_plateau=STALLS), head_and(on_plateau=more)) == PROGRESS
    assert resumed(head_and(on_plateau=STALLS), head_and(on_plateau=other)).stall == Stall()
    assert resumed(head_and(on_plateau=STALLS), head_and(epoch=3)).stall == Stall()


SECOND = PROGRESS.advance(1, Position(2, 20))


def test_a_longer_run_keeps_a_phase_that_began_after_a_share_of_the_shorter_one() -> None:
    short = fit_to_length(head_and(at=0.5), num_steps=40, epoch_steps=4)
    long = fit_to_length(head_and(at=0.5), num_steps=400, epoch_steps=4)
    assert long.next_index(resumed(short, long, SECOND), Position(2, 20)) == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"step": 20},
        {"epoch": 3},
        {"epoch": 2, "warmup_steps": 5},
        {"epoch": 2, "freeze": "head"},
        {"epoch": 2, "lr": 0.1},
        {"on_plateau": STALLS},
    ],
)
def test_phases_that_lie_behind_must_be_the_same(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="another schedule"):
        resumed(head_and(epoch=2), head_and(**changed), SECOND)

import re
from typing import Any

import pytest
from torch import nn

from lit_finetune.blocks.block import Block, list_blocks
from lit_finetune.schedules.phases import Schedule
from lit_finetune.schedules.plan import Plan, make_plan
from lit_finetune.schedules.strategies import STRATEGIES, make_schedule, split_strategy

BLOCKS = [Block(name, (name,), (f"{name}.weight",)) for name in ("stem", "a", "b", "c", "head")]


def schedule_of(schedule: Any, blocks: list[Block] = BLOCKS, max_epochs: int | None = 10) -> Any:
    split = split_strategy(schedule)
    assert split is not None
    names = [block.name for block in blocks]
    return make_schedule(*split, block_names=names, max_epochs=max_epochs)


def plan_of(schedule: Any, blocks: list[Block] = BLOCKS, max_epochs: int | None = 10) -> Plan:
    return make_plan(schedule_of(schedule, blocks, max_epochs), blocks, max_epochs)


def phases(schedule: Schedule) -> dict[int, Any]:
    return {phase.epoch: phase.adds[0].modules for phase in schedule}


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("head_only", {0: ("head",)}),
        ("full", {0: ("all",)}),
        ("gradual", {0: ("head",), 2: ("c",), 4: ("b",), 6: ("a",), 8: ("stem",)}),
        ({"gradual": {"every": 1}}, {0: ("head",), 1: ("c",), 2: ("b",), 3: ("a",), 4: ("stem",)}),
        ("lp_ft", {0: ("head",), 3: ("all",)}),
        ({"lp_ft": {"head_epochs": 7}}, {0: ("head",), 7: ("all",)}),
        ({"last_n": {"n": 2}}, {0: ("c", "head")}),
        ({"last_n": {"n": 5}}, {0: ("stem", "a", "b", "c", "head")}),
        ({"first_n_frozen": {"n": 2}}, {0: ("b", "c", "head")}),
        ({"head_only": None}, {0: ("head",)}),
        ({"head_only": {}}, {0: ("head",)}),
    ],
)
def test_a_strategy_is_the_recipe_of_its_name(schedule: Any, expected: dict[int, Any]) -> None:
    assert phases(schedule_of(schedule)) == expected


def test_gradual_unfreezes_several_blocks_at_a_time_in_a_short_run() -> None:
    assert phases(schedule_of("gradual", max_epochs=2)) == {0: ("head", "c", "b"), 1: ("a", "stem")}


@pytest.mark.parametrize("max_epochs", range(1, 14))
def test_gradual_trains_every_block_before_the_end_of_any_run(max_epochs: int) -> None:
    plan = plan_of("gradual", max_epochs=max_epochs)
    assert plan.trainable(len(plan.phases) - 1) == {f"{block.name}.weight" for block in BLOCKS}


@pytest.mark.parametrize(
    "schedule",
    [
        {"gradual": {"every": 1}},
        "lp_ft",
        "full",
        {"last_n": {"n": 3}},
        {"first_n_frozen": {"n": 1}},
    ],
)
def test_it_finds_the_blocks_of_a_network_whose_modules_have_numbers_for_names(
    schedule: Any,
) -> None:
    network = nn.Sequential(*(nn.Linear(2, 2) if i % 2 == 0 else nn.ReLU() for i in range(7)))
    blocks = list_blocks(network)

    plan = plan_of(schedule, blocks)

    chosen = [phase.parameters for phase in plan.phases]
    assert chosen[0][-2:] == ("6.weight", "6.bias")
    if schedule == {"gradual": {"every": 1}}:
        assert chosen[1] == ("4.weight", "4.bias")


@pytest.mark.parametrize("name", ["gradual", "lp_ft"])
def test_a_run_without_an_end_needs_to_be_told_the_pace(name: str) -> None:
    with pytest.raises(ValueError, match=rf"`{name}` needs `(every|head_epochs)`"):
        schedule_of(name, max_epochs=None)


@pytest.mark.parametrize("schedule", [{0: "head"}, {"0": "head"}, {" 1 ": "head"}, {-1: "all"}])
def test_a_mapping_from_epochs_is_no_strategy(schedule: Any) -> None:
    assert split_strategy(schedule) is None


@pytest.mark.parametrize("schedule", ["gradul", {"gradul": {"every": 2}}])
def test_an_unknown_strategy_is_answered_with_the_nearest_and_all_there_are(schedule: Any) -> None:
    with pytest.raises(ValueError, match="Did you mean 'gradual'") as error:
        split_strategy(schedule)
    assert all(name in str(error.value) for name in STRATEGIES)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"gradual": {"evry": 2}}, "Unknown argument of the strategy 'gradual' 'evry'. Did you"),
        ({"gradual": 2}, "by name: {gradual: {every: …}}"),
        ({"gradual": {"every": 0}}, "`every` of the strategy 'gradual' is a whole number from 1"),
        ({"gradual": {"every": 2.5}}, "but got 2.5"),
        ({"gradual": {"every": "2"}}, "but got '2'"),
        ({"gradual": {"every": None}}, "but got None"),
        ({"lp_ft": {"head_epochs": 0}}, "`head_epochs`"),
        ({"last_n": {"n": True}}, "but got True"),
        ({"head_only": {"n": 1}}, "'head_only' takes no arguments"),
        ({"full": 3}, "'full' takes no arguments"),
    ],
)
def test_arguments_that_cannot_be_are_refused_before_a_network_is_there(
    schedule: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        split_strategy(schedule)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("last_n", "'last_n' needs `n`: {last_n: {n: …}}"),
        ({"last_n": {"n": 6}}, "from 1 to 5 here (stem, a, b, c, head), but got 6"),
        ({"first_n_frozen": {"n": 5}}, "would freeze every block"),
        ({"first_n_frozen": {"n": 9}}, "from 1 to 5"),
    ],
)
def test_counts_that_do_not_fit_the_network_are_refused(schedule: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        schedule_of(schedule)

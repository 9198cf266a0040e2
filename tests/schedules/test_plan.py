import re
from typing import Any

import pytest

from lit_finetune.blocks.block import Block
from lit_finetune.schedules.phases import parse_schedule
from lit_finetune.schedules.plan import Plan, format_plan, make_plan

NAMES = ("stem", "layer1", "layer2", "layer3", "head")
BLOCKS = [
    Block(name, (name,), (f"{name}.0.weight", f"{name}.0.bias", f"{name}.1.weight"))
    for name in NAMES
]
EVERYTHING = {parameter for block in BLOCKS for parameter in block.parameters}


def plan_of(entries: dict[Any, Any], max_epochs: int | None = 10) -> Plan:
    return make_plan(parse_schedule(entries), BLOCKS, max_epochs)


def blocks_of(parameters: Any) -> list[str]:
    return [block.name for block in BLOCKS if set(block.parameters) <= set(parameters)]


def test_what_trains_grows_from_phase_to_phase() -> None:
    plan = plan_of({0: "head", 2: ["layer3", "layer2"], 5: "all"})
    trained = [blocks_of(plan.trainable(index)) for index in range(3)]
    assert trained == [["head"], ["layer2", "layer3", "head"], list(NAMES)]
    assert [plan.index_at(epoch) for epoch in (0, 1, 2, 4, 5, 9)] == [0, 0, 1, 1, 2, 2]


def test_each_parameter_is_admitted_once() -> None:
    plan = plan_of({0: "head", 1: "layer3.0", 2: "all"})
    admitted = [name for phase in plan.phases for name in phase.parameters]
    assert sorted(admitted) == sorted(EVERYTHING)


def test_all_takes_the_rest() -> None:
    plan = plan_of({0: "head", 2: "layer2.0", 4: "all"})
    assert set(plan.phases[2].parameters) == EVERYTHING - plan.trainable(1)


def test_rates_belong_to_their_part_of_a_phase() -> None:
    plan = plan_of({0: "head", 1: ["layer3", {"modules": "layer2", "lr_scale": 0.1}]})
    rates = [(a.label, a.lr, a.lr_scale) for a in plan.phases[1].additions]
    assert rates == [("layer3", None, None), ("layer2", None, 0.1)]
    assert plan.phases[1].label == "layer3, layer2"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({0: "head", 2: "layer5"}, "epoch 2: 'layer5' matches nothing. Did you mean 'layer"),
        ({0: "head", 2: "head"}, "'head' overlaps: all of it trains from epoch 0 on"),
        ({0: "head", 2: "-2:"}, "3 of its parameters train from epoch 0 on, such as 'head."),
        ({0: "layer3.0", 1: "layer3"}, "2 of its parameters train from epoch 0 on"),
        ({0: ["layer3", "layer3.0"]}, "epoch 0: 'layer3.0' overlaps"),
        ({0: "all", 3: "layer1"}, "'layer1' overlaps"),
        ({0: "all", 3: "all"}, "'all' overlaps: all of it trains"),
        ({0: "head", 10: "all"}, "epoch 10: never reached, the last of max_epochs=10 is epoch 9"),
    ],
)
def test_a_schedule_that_cannot_be_followed_says_what_and_where(
    entries: dict[Any, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        plan_of(entries)
    assert "Blocks: stem, layer1, layer2, layer3, head." in str(error.value)


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(ValueError, match="does not fit the network and the run") as error:
        plan_of({0: ["head", "lyer1"], 2: "head", 12: "layer9"})
    for part in ("epoch 0: 'lyer1'", "epoch 2: 'head' overlaps", "epoch 12: never", "'layer9'"):
        assert part in str(error.value)


def test_the_last_epoch_is_still_reached_and_without_a_limit_every_epoch_is() -> None:
    assert len(plan_of({0: "head", 9: "all"}).phases) == 2
    assert len(plan_of({0: "head", 999: "all"}, max_epochs=None).phases) == 2


def test_what_is_written_to_a_checkpoint_says_what_has_trained_so_far() -> None:
    early = plan_of({0: "head", 2: "layer3", 5: "all"})
    other_later = plan_of({0: "head", 2: "layer3", 7: "layer2"})
    other_rate = plan_of({0: "head", 2: {"modules": "layer3", "lr_scale": 0.5}})
    assert early.to_list(1) == other_later.to_list(1) != other_rate.to_list(1)
    assert early.to_list(2) != other_later.to_list(2)


def test_the_table_counts_what_trains() -> None:
    table = format_plan(plan_of({0: "head", 4: "all"}), dict.fromkeys(EVERYTHING, 1000))
    assert [line.split() for line in table.splitlines()[1:]] == [
        ["0", "head", "3,000", "20.0%"],
        ["4", "all", "15,000", "100.0%"],
    ]

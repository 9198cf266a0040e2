import re
from typing import Any

import pytest

from lit_finetune.schedules.phases import Phase, Selection, parse_schedule, phase_at


def one_phase(value: Any) -> tuple[Selection, ...]:
    return parse_schedule({0: value})[0].adds


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [([0], [0, 0, 0, 0, 0, 0]), ([0, 1, 4], [0, 1, 1, 1, 2, 2]), ([0, 5], [0, 0, 0, 0, 0, 1])],
)
def test_the_phase_in_force_is_the_last_that_has_begun(
    epochs: list[int], expected: list[int]
) -> None:
    assert [phase_at(epochs, epoch) for epoch in range(6)] == expected


def test_phases_come_in_the_order_of_their_epochs_and_not_of_the_mapping() -> None:
    schedule = parse_schedule({4: "all", 0: "head", 2: "layer4"})
    assert [phase.epoch for phase in schedule] == [0, 2, 4]


@pytest.mark.parametrize("key", [2, "2", " 2 ", 2.0])
def test_an_epoch_may_be_written_as_text_or_as_a_whole_float(key: Any) -> None:
    assert parse_schedule({0: "head", key: "all"})[1] == Phase(
        epoch=2, adds=(Selection(modules=("all",)),)
    )


@pytest.mark.parametrize("value", ["head", -1])
def test_a_selector_alone_is_one_selection(value: Any) -> None:
    assert one_phase(value) == (Selection(modules=(value,)),)


def test_the_selectors_of_a_list_start_together() -> None:
    assert one_phase(["layer3", -2]) == (Selection(modules=("layer3", -2)),)


def test_a_mapping_brings_a_rate_and_a_list_may_mix_both() -> None:
    entries = ["head", {"modules": ["layer4", "layer3"], "lr_scale": 0.1}, {"modules": -5, "lr": 1}]
    assert one_phase(entries) == (
        Selection(modules=("head",)),
        Selection(modules=("layer4", "layer3"), lr_scale=0.1),
        Selection(modules=(-5,), lr=1),
    )


@pytest.mark.parametrize("key", ["two", -1, 1.5, True, None, float("inf"), float("nan"), "-1"])
def test_a_key_that_is_no_epoch_is_refused_by_name(key: Any) -> None:
    with pytest.raises(ValueError, match=r"an epoch is a whole number from 0 on") as error:
        parse_schedule({0: "head", key: "all"})
    assert repr(key) in str(error.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "selects nothing"),
        ({"modules": []}, "selects nothing"),
        (None, "a selector is a name or a block's index, but got None"),
        (1.5, "but got 1.5"),
        (True, "but got True"),
        (["head", None], "but got None"),
        ({"modules": ["head", 1.5]}, "but got 1.5"),
        ({"modules": None}, "but got None"),
        ({"lr": 0.1}, "names no `modules`"),
        ({"modules": "head", "lr_scal": 0.1}, "unknown key 'lr_scal'. Did you mean 'lr_scale'"),
        ({"modules": "head", "lr": 0.1, "lr_scale": 0.1}, "both `lr` and `lr_scale`"),
        ({"modules": "head", "lr": 0}, "`lr` must be a positive number"),
        ({"modules": "head", "lr": "1e-3"}, "has '1e-3'"),
        ({"modules": "head", "lr_scale": -1.0}, "`lr_scale` must be a positive number"),
        ({"modules": "head", "lr_scale": float("nan")}, "`lr_scale` must be a positive number"),
    ],
)
def test_an_entry_that_cannot_be_read_says_what_is_wrong(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_schedule({0: value})


def test_the_same_epoch_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="epoch 2 is given twice"):
        parse_schedule({0: "head", 2: "layer4", "2": "layer3"})


@pytest.mark.parametrize(("entries", "when"), [({3: "head"}, "before epoch 3"), ({}, "at all")])
def test_something_must_train_from_the_start(entries: dict[int, str], when: str) -> None:
    with pytest.raises(ValueError, match=f"nothing would train {when}"):
        parse_schedule(entries)


def test_all_problems_of_a_schedule_are_named_at_once() -> None:
    with pytest.raises(ValueError, match="The schedule cannot be read") as error:
        parse_schedule({"soon": "head", 0: None, 2: {"lr": 1.0}})
    for part in ("'soon'", "got None", "names no `modules`"):
        assert part in str(error.value)

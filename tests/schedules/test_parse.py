import re
from typing import Any

import pytest

from lit_finetune.schedules.parse import parse_entries, parse_plateau, read_schedule
from lit_finetune.schedules.phases import Phase, Selection
from lit_finetune.schedules.triggers import Plateau

HEAD = {"modules": "head"}


def second(**entry: Any) -> Phase:
    return parse_entries([HEAD, entry])[1]


def test_a_list_by_epochs_means_the_same_as_a_mapping() -> None:
    mapping = {0: "head", 2: ["layer4", {"modules": "layer3", "lr_scale": 0.1}], 5: "all"}
    entries = [
        HEAD,
        {"epoch": 2, "modules": ["layer4", {"modules": "layer3", "lr_scale": 0.1}]},
        {"epoch": "5", "modules": "all"},
    ]
    assert read_schedule(entries) == read_schedule(mapping)


@pytest.mark.parametrize(
    ("beginning", "words"),
    [
        ({"epoch": 2}, "epoch 2"),
        ({"step": 500}, "step 500"),
        ({"at": 0.3}, "30%"),
        ({"at": 0.125}, "12.5%"),
        ({"on_plateau": {"monitor": "val/loss"}}, "when val/loss stalls (patience 2)"),
        (
            {"on_plateau": {"monitor": "val/acc", "patience": 1, "max_epochs": 9}},
            "when val/acc stalls (patience 1) or after 9 epochs",
        ),
    ],
)
def test_an_entry_says_in_words_when_it_begins(beginning: dict[str, Any], words: str) -> None:
    assert second(**beginning, modules="layer4").start_text == words


@pytest.mark.parametrize("beginning", [{}, {"epoch": 0}, {"step": 0}, {"at": 0}])
def test_the_first_entry_begins_at_the_start(beginning: dict[str, Any]) -> None:
    assert parse_entries([{**beginning, **HEAD}]) == parse_entries([HEAD])


def test_an_entry_brings_a_rate_a_warm_up_and_what_is_frozen() -> None:
    entry = {"step": 9, "modules": ["a", -2], "lr": 0.1, "warmup_steps": 5, "freeze": ["b", "c"]}
    assert second(**entry) == Phase(
        step=9,
        adds=(Selection(modules=("a", -2), lr=0.1),),
        freezes=("b", "c"),
        warmup_steps=5,
    )


def test_an_entry_may_freeze_alone() -> None:
    assert second(epoch=3, freeze="head") == Phase(epoch=3, freezes=("head",))


def test_a_plateau_has_all_that_is_given() -> None:
    given = {"monitor": "a", "mode": "max", "patience": 3, "min_delta": 0.1, "max_epochs": 7}
    assert parse_plateau(given) == Plateau(
        monitor="a", mode="max", patience=3, min_delta=0.1, max_epochs=7
    )


PLATEAU = {"monitor": "val/loss"}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("layer4", "entry 2: it is a mapping, such as `{epoch: 2, modules: layer4}`, not 'layer4'"),
        ({"epoch": 2, "module": "a"}, "entry 2: unknown key 'module'. Did you mean 'modules'"),
        ({"modules": "a"}, "does not say when it begins: give one of `epoch`, `step`, `at`"),
        ({"epoch": 2, "at": 0.5, "modules": "a"}, "it begins once: keep one of `epoch`, `at`"),
        ({"epoch": 2}, "it changes nothing: give `modules`"),
        ({"epoch": 1.5, "modules": "a"}, "`epoch`: a whole number from 0 on is needed, but got"),
        ({"step": -1, "modules": "a"}, "`step`: a whole number from 0 on is needed, but got -1"),
        ({"step": True, "modules": "a"}, "but got True"),
        ({"at": 1.0, "modules": "a"}, "`at`: a share of the run is needed, from 0 to below 1"),
        ({"at": -0.1, "modules": "a"}, "but got -0.1"),
        ({"at": 30, "modules": "a"}, "but got 30"),
        ({"at": "half", "modules": "a"}, "but got 'half'"),
        ({"at": float("nan"), "modules": "a"}, "but got nan"),
        ({"epoch": 2, "modules": []}, "selects nothing"),
        ({"epoch": 2, "modules": None}, "a selector is a name or a block's index, but got None"),
        ({"epoch": 2, "modules": "a", "lr": 1, "lr_scale": 1}, "keep one of them"),
        ({"epoch": 2, "modules": "a", "lr": 0}, "`lr` must be a positive number"),
        ({"epoch": 2, "freeze": "a", "lr": 1}, "`lr` without `modules`"),
        ({"epoch": 2, "freeze": "a", "warmup_steps": 1}, "`warmup_steps` without `modules`"),
        ({"epoch": 2, "freeze": []}, "`freeze`: it selects nothing"),
        ({"epoch": 2, "freeze": {"modules": "a"}}, "`freeze`: a selector is a name"),
        ({"epoch": 2, "modules": "a", "warmup_steps": -3}, "`warmup_steps`: a whole number"),
        ({"epoch": 2, "modules": "a", "restore_best": True}, "`restore_best` needs `on_plateau`"),
        ({"on_plateau": PLATEAU, "modules": "a", "restore_best": 1}, "true or false is needed"),
        ({"on_plateau": "val/loss", "modules": "a"}, "names a metric, as {monitor: val/loss}"),
        ({"on_plateau": {"patience": 1}, "modules": "a"}, "names a metric"),
        ({"on_plateau": {**PLATEAU, "pacience": 1}, "modules": "a"}, "Did you mean 'patience'"),
        ({"on_plateau": {**PLATEAU, "patience": 0}, "modules": "a"}, "from 1 on is needed"),
        ({"on_plateau": {**PLATEAU, "max_epochs": 0}, "modules": "a"}, "`max_epochs`: a whole"),
        ({"on_plateau": {**PLATEAU, "min_delta": -1}, "modules": "a"}, "from 0 on is needed"),
        ({"on_plateau": {**PLATEAU, "mode": "maxx"}, "modules": "a"}, "Did you mean 'max'"),
        ({"on_plateau": {**PLATEAU, "mode": None}, "modules": "a"}, "Unknown mode 'None'"),
    ],
)
def test_an_entry_that_cannot_be_read_says_what_is_wrong(entry: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_entries([HEAD, entry])


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "nothing would train at all"),
        ([{"epoch": 2, "modules": "a"}], "entry 1: nothing would train before it begins, epoch 2"),
        ([{"at": 0.1, "modules": "a"}], "before it begins, 10%"),
        ([{"on_plateau": PLATEAU, "modules": "a"}], "before it begins, when val/loss stalls"),
        ([{"freeze": "a"}], "nothing would train: give `modules`"),
        ([{"modules": "a", "freeze": "a"}], "nothing trains yet that `freeze` could stop"),
    ],
)
def test_something_must_train_from_the_start(entries: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_entries(entries)


@pytest.mark.parametrize("key", ["epoch", "step"])
@pytest.mark.parametrize("later", [3, 2])
def test_what_begins_later_stands_below(key: str, later: int) -> None:
    entries = [HEAD, {key: 3, "modules": "a"}, {"at": 0.5, "modules": "b"}, {key: later}]
    message = f"entry 4: {key} {later} does not come after {key} 3, which stands above it"
    with pytest.raises(ValueError, match=message):
        parse_entries(entries)


def test_all_problems_of_a_list_are_named_at_once() -> None:
    entries = [
        {"modules": "head", "lrs": 1},
        {"epoch": 4, "step": 4, "modules": "a", "lr": "1e-3", "freeze": True},
        {"epoch": 2, "modules": "b"},
        {"on_plateau": {"monitor": "m", "patience": 0, "mode": "low"}},
    ]
    with pytest.raises(ValueError, match="The schedule cannot be read") as error:
        parse_entries(entries)
    parts = ("'lrs'", "keep one of", "'1e-3'", "got True", "epoch 2 does", "`patience`", "'low'")
    for part in (*parts, "entry 4: it changes nothing"):
        assert part in str(error.value)

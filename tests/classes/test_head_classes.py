"""Two lists of class names, compared; and what follows for the head."""

import unicodedata

import pytest

from lit_finetune.classes.head_classes import HeadClasses, match_classes, unnamed
from lit_finetune.classes.names import as_names, reordering, unique_names

NETWORK = HeadClasses(("cat", "ant", "bee"), "network", "its own head")
TRAINED = HeadClasses(("cat", "ant", "bee"), "trained", "the checkpoint")


@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("head", [NETWORK, TRAINED])
def test_the_same_names_in_another_order_are_put_in_order(head: HeadClasses, trains: bool) -> None:
    match = match_classes(["ant", "bee", "cat"], head, trains=trains)

    assert match.action == "reorder"
    assert [head.names[place] for place in match.order] == ["ant", "bee", "cat"]
    assert "'ant', 'bee', 'cat'" in match.message
    assert "'cat', 'ant', 'bee'" in match.message


@pytest.mark.parametrize("data", [["ant", "bee", "cat"], ["ant", "bee", "dog"]])
def test_an_optimizer_that_goes_on_allows_no_other_order_and_no_other_names(
    data: list[str],
) -> None:
    for head in (NETWORK, TRAINED):
        with pytest.raises(ValueError, match=r"'ant', 'bee'.*'cat', 'ant', 'bee'"):
            match_classes(data, head, trains=True, is_resumed=True)


def test_a_pretrained_head_gives_way_to_a_new_one_for_other_classes_and_it_is_told() -> None:
    match = match_classes(["ant", "bee", "dog"], NETWORK, trains=True)

    assert match.action == "renew"
    assert "only the data has 'dog'; it lacks 'cat'" in match.message
    assert "\n" not in match.message


@pytest.mark.parametrize(("head", "trains"), [(TRAINED, True), (TRAINED, False), (NETWORK, False)])
def test_other_names_are_refused_with_both_lists(head: HeadClasses, trains: bool) -> None:
    with pytest.raises(
        ValueError, match=r"'ant', 'bee', 'dog'.*'cat', 'ant', 'bee'.*it lacks 'cat'"
    ):
        match_classes(["ant", "bee", "dog"], head, trains=trains)


@pytest.mark.parametrize("data", [["ant", "cat"], ["ant", "bee", "cat", "dog"]])
def test_another_number_is_refused_with_both_lists(data: list[str]) -> None:
    for head in (NETWORK, TRAINED):
        with pytest.raises(ValueError, match="'cat', 'ant', 'bee'") as error:
            match_classes(data, head, trains=True)
        assert all(repr(name) in str(error.value) for name in data)
        assert "num_classes" not in str(error.value)


def test_another_number_than_a_head_without_names_has_says_what_works_where() -> None:
    with pytest.raises(ValueError, match=r"3 classes.*num_classes=2.*num_classes=3; the command"):
        match_classes(["ant", "bee", "wasp"], unnamed(2), trains=True)


def test_long_lists_are_shortened_and_what_is_missing_is_named() -> None:
    many = [f"class {index:03d}" for index in range(200)]
    head = HeadClasses((*many[:-1], "another"), "trained")

    with pytest.raises(ValueError, match=r"only the data has 'class 199'; it lacks 'another'") as e:
        match_classes(many, head, trains=False)
    assert len(str(e.value)) < 600


def test_a_head_without_names_takes_those_of_the_data_once_it_trains() -> None:
    assert match_classes(["b", "a"], unnamed(2), trains=True).action == "name"
    assert match_classes(["b", "a"], unnamed(2), trains=False).action == "keep"


@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize(
    ("head", "words"),
    [
        (HeadClasses(("LABEL_0", "LABEL_1"), "network", "its own head"), "'LABEL_0', 'LABEL_1'"),
        (unnamed(2), "The model names no classes"),
    ],
)
def test_a_head_that_names_no_classes_is_matched_by_place_and_that_is_told_once(
    head: HeadClasses, words: str, trains: bool
) -> None:
    match = match_classes(["wasp", "ant"], head, trains=trains)

    assert match.action in ("name", "keep")
    assert words in match.message
    assert "by place" in match.message
    assert "'wasp', 'ant'" in match.message
    assert not match_classes(["wasp", "ant"], head, trains=trains, is_new=True).message


def test_one_name_in_two_forms_of_unicode_is_one_name() -> None:
    ours, theirs = (unicodedata.normalize(form, "café") for form in ("NFD", "NFC"))
    assert ours != theirs
    head = HeadClasses(("cafz", theirs), "trained")

    # sorted as folders on a Mac come, the decomposed form stands first
    assert match_classes(sorted([ours, "cafz"]), head, trains=True).order == (1, 0)
    with pytest.raises(ValueError, match="several of them"):
        match_classes([ours, theirs], head, trains=True)


@pytest.mark.parametrize("other", ["Ant", "ant ", " ant", "a nt"])
def test_names_that_differ_by_little_are_others_and_it_is_said_how(other: str) -> None:
    head = HeadClasses(("ant", "bee"), "trained")

    with pytest.raises(ValueError, match="only in upper and lower case or in spaces") as error:
        match_classes(sorted([other, "bee"]), head, trains=False)
    assert repr(other) in str(error.value)


def test_numbers_in_the_order_of_folders_are_put_in_the_order_of_numbers() -> None:
    numbers = [str(index) for index in range(12)]
    folders = sorted(numbers)
    assert folders[:3] == ["0", "1", "10"]

    for origin in ("network", "weights", "trained"):
        match = match_classes(folders, HeadClasses(tuple(numbers), origin), trains=False)
        assert [numbers[place] for place in match.order] == folders


def test_the_numbers_of_a_default_config_are_no_names_but_those_of_a_training_are() -> None:
    data, numbers = ["ant", "bee"], ("0", "1")

    assert match_classes(data, HeadClasses(numbers, "network"), trains=True).action == "name"
    with pytest.raises(ValueError, match="it lacks '0', '1'"):
        match_classes(data, HeadClasses(numbers, "trained"), trains=True)


def test_two_classes_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="several of them are called 'ant'"):
        match_classes(["ant", "bee", "ant"], unnamed(3), trains=True)


def test_names_that_a_network_has_twice_are_told_apart() -> None:
    names = unique_names(["crane", "ant", "crane", "bee"])

    assert len(set(names)) == 4
    assert [name.split()[0] for name in names] == ["crane", "ant", "crane", "bee"]


@pytest.mark.parametrize("classes", [None, 10, "ants", {"ants": 0}, [], [("tench", "Tinca")]])
def test_what_is_no_list_of_names_gives_none(classes: object) -> None:
    assert as_names(classes) is None


def test_imagenet_goes_by_its_ids_and_by_its_synonyms() -> None:
    timm = pytest.importorskip("timm")
    torchvision = pytest.importorskip("torchvision.models")
    info = timm.data.ImageNetInfo("imagenet-1k")
    ids = [info.index_to_label_name(index) for index in range(1000)]
    synonyms = unique_names([info.index_to_description(index) for index in range(1000)])
    categories = torchvision.AlexNet_Weights.DEFAULT.meta["categories"]

    for head in (categories, synonyms, ids):
        assert reordering(ids, head) == list(range(1000))
        assert reordering(ids[::-1], head) == list(range(1000))[::-1]
    assert reordering(sorted(categories), categories) == [
        categories.index(name) for name in sorted(categories)
    ]
    assert reordering([*ids[:-1], "n99999999"], categories) is None

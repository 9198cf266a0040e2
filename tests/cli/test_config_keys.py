"""A key that is given twice is an error, wherever in a configuration."""

import pytest
import yaml

from lit_finetune.cli.config_keys import check_keys
from lit_finetune.schedules.strategies import split_strategy


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\nb: 2\na: 3\n",
        "callbacks:\n- init_args:\n    schedule:\n      1: layer1\n      1: stem\n",
        "{a: {b: 1, b: 1}}",
        "[{0: head, 0: stem}]",
        "a: 1\n'a': 2\n",
    ],
)
def test_a_repeated_key_is_named_with_its_lines(text: str) -> None:
    with pytest.raises(yaml.YAMLError, match=r"key '\w+' is given twice, here and in line \d"):
        check_keys(text)


@pytest.mark.parametrize(
    "text",
    ["", "text", "a: {b: 1}\nc: {b: 1}", "base: &x {a: 1}\nb: {<<: *x, a: 2}", "[{a: 1}, {a: 1}]"],
)
def test_equal_keys_of_different_mappings_are_none_of_its_business(text: str) -> None:
    check_keys(text)


def test_text_that_no_yaml_can_be_read_from_is_no_unknown_strategy() -> None:
    with pytest.raises(ValueError, match="text that YAML cannot read: give each epoch once"):
        split_strategy("{0: head, 1: layer4, 1: all}")

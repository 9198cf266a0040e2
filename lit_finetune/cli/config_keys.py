"""Refuse a key that a configuration gives twice: YAML silently keeps the last value."""

from collections.abc import Iterator
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader


def refuse_repeated_keys() -> None:
    """Let jsonargparse refuse repeated keys, in files and in values on the command line."""
    load = get_loader("yaml")
    if getattr(load, "refuses_repeated_keys", False):
        return

    def load_checked(text: str) -> Any:
        check_keys(text)
        return load(text)

    load_checked.refuses_repeated_keys = True  # type: ignore[attr-defined]
    set_loader("yaml", load_checked, exceptions=(yaml.YAMLError,))


def check_keys(text: str) -> None:
    """Refuse YAML that has a key twice in one mapping.

    >>> check_keys("{0: head, 1: layer4, 2: all}")
    >>> check_keys("{0: head, 1: layer4, 1: all}")
    Traceback (most recent call last):
    yaml.constructor.ConstructorError: the key '1' is given twice, here and in line 1: ...

    Raises:
        yaml.YAMLError: Names the key and its lines.
    """
    if ":" not in text and "[" not in text:
        return
    try:
        repeated = list(_repeated_keys(yaml.compose(text, Loader=yaml.SafeLoader)))
    except RecursionError:
        raise yaml.YAMLError("it is nested too deep") from None
    for key, first in repeated:
        line = first.start_mark.line + 1
        raise yaml.constructor.ConstructorError(
            problem=f"the key {key.value!r} is given twice, here and in line {line}: YAML"
            " would silently keep the last. Leave one out, or write both values under one key",
            problem_mark=key.start_mark,
        )


def _repeated_keys(node: yaml.Node | None) -> Iterator[tuple[yaml.Node, yaml.Node]]:
    """Each repeated key, and its first occurrence in the same mapping."""
    if isinstance(node, yaml.MappingNode):
        seen: dict[tuple[str, str], yaml.Node] = {}
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if (key.tag, key.value) in seen:
                    yield key, seen[key.tag, key.value]
                seen[key.tag, key.value] = key
            yield from _repeated_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _repeated_keys(item)

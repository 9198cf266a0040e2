"""Read a JSON file that somebody else may have written."""

import json
from pathlib import Path
from typing import Any

MOST_LEVELS = 100
"""As deep as that nothing is that this project reads."""


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no JSON, or nested so deep that whoever goes through it would fail.
    """
    return parse_json(path.read_text(encoding="utf-8"))


def parse_json(text: str) -> Any:
    """What a JSON text holds.

    >>> parse_json('{"a": [1]}')
    {'a': [1]}
    >>> parse_json("[" * 200 + "]" * 200)
    Traceback (most recent call last):
    ValueError: It is nested too deep.

    Raises:
        ValueError: It is no JSON, or nested so deep that whoever goes through it would fail.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("It is nested too deep.") from None
    level = [value]
    for _ in range(MOST_LEVELS):
        level = [inner for each in level for inner in _inside(each)]
        if not level:
            return value
    raise ValueError("It is nested too deep.")


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []

"""Read JSON that may come from anybody."""

import json
from pathlib import Path
from typing import Any

MAX_DEPTH = 100
"""Nothing that this project reads is nested as deep."""


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no JSON, or nested so deep that recursive code would fail.
    """
    return parse_json(path.read_text(encoding="utf-8"))


def parse_json(text: str) -> Any:
    """Parse a JSON text.

    >>> parse_json('{"a": [1]}')
    {'a': [1]}
    >>> parse_json("[" * 200 + "]" * 200)
    Traceback (most recent call last):
    ValueError: It is nested too deep.

    Raises:
        ValueError: It is no JSON, or nested so deep that recursive code would fail.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("It is nested too deep.") from None
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [child for each in level for child in _children(each)]
        if not level:
            return value
    raise ValueError("It is nested too deep.")


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []

"""File names as text that any process reads back, whatever its locale."""

import json
import os
from typing import Any


def to_text(name: str) -> str:
    r"""A file name as it is written into a file: bytes that are no UTF-8 are kept as surrogates.

    Under `LC_ALL=C` Python may see other text in the same bytes of a name.

    >>> to_text("caf\udce9.png")
    'caf\udce9.png'
    """
    return os.fsencode(name).decode("utf-8", "surrogateescape")


def from_text(text: str) -> str:
    """The file name of which this is the text, as this process sees it."""
    return os.fsdecode(text.encode("utf-8", "surrogateescape"))


def json_text(data: Any) -> str:
    r"""JSON that any program reads: what is no UTF-8 in a name becomes an escape of JSON's own.

    >>> json.loads(json_text(["caf\udce9"])) == ["caf\udce9"], json_text(["é"]).isascii()
    (True, False)
    """
    text = json.dumps(data, indent=1, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")

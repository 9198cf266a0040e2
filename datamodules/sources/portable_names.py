"""File names as text that any process can read back, with any locale."""

import json
import os
from typing import Any


def to_text(name: str) -> str:
    r"""A file name as text for a file: bytes that are no UTF-8 become surrogates.

    Under `LC_ALL=C` Python may decode the same bytes to another text.

    >>> to_text("caf\udce9.png")
    'caf\udce9.png'
    """
    return os.fsencode(name).decode("utf-8", "surrogateescape")


def from_text(text: str) -> str:
    """The file name for a text of `to_text`, in the encoding of this process."""
    return os.fsdecode(text.encode("utf-8", "surrogateescape"))


def json_text(data: Any) -> str:
    r"""JSON that any program can read: surrogates are written as JSON escapes.

    >>> json.loads(json_text(["caf\udce9"])) == ["caf\udce9"], json_text(["é"]).isascii()
    (True, False)
    """
    text = json.dumps(data, indent=1, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")

"""Escape text from outside, so that a terminal or a spreadsheet shows it and executes nothing."""

import re
import unicodedata

_JOINERS = "\u200c\u200d"  # zero-width, part of the spelling of Persian words and of emoji
_SHORT = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_BEGINS_FORMULA = ("=", "+", "-", "@", "'", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""The first characters of a formula in a spreadsheet, full-width forms too; and our own mark."""
_SPLITS = re.compile(rf";(?=[\s\"]*[{re.escape(''.join(_BEGINS_FORMULA))}])")
"""In many locales a semicolon separates cells, so that a formula could begin after it."""


def printable(text: object) -> str:
    r"""A text with control characters, escapes and changes of direction escaped.

    >>> print(printable("Käfer\x1b[2J 1.png"), printable("a\u202egnp.exe"))
    Käfer\x1b[2J 1.png a\u202egnp.exe

    Bytes that are no UTF-8 are shown as in Python, `\udcff`. Line breaks stay.
    """
    return "".join(c if c == "\n" or _is_printable(c) else _escape(c) for c in str(text))


def as_cell(text: object) -> str:
    r"""A text as a cell of a table: printable, one line, and never a formula.

    A backslash is doubled. A text that begins as a formula or with an apostrophe gets an apostrophe
    before it. `text_of_cell` reverses this.

    >>> print(as_cell("=1+1"), as_cell("it's"), as_cell("a\tb\\c"))
    '=1+1 it's a\tb\\c
    """
    shown = "".join(c if _is_printable(c) and c != "\\" else _escape(c) for c in str(text))
    shown = _SPLITS.sub(r"\\x3b", shown)
    return f"'{shown}" if shown.lstrip().startswith(_BEGINS_FORMULA) else shown


def text_of_cell(cell: str) -> str:
    r"""The text from which `as_cell` made a cell.

    >>> names = ["=1+1", "'a", "C:\\x\x1b", "a\u202eb", "\udcff.png", "ä 🐝 \\n"]
    >>> [text_of_cell(as_cell(name)) for name in names] == names
    True
    """
    text = cell[1:] if cell.startswith("'") else cell
    before, found, rest = text.partition("\\")
    parts = [before]
    while found:
        length = {"x": 3, "u": 5, "U": 9}.get(rest[:1], 1)
        parts.append(f"\\{rest[:length]}".encode("ascii").decode("unicode_escape"))
        before, found, rest = rest[length:].partition("\\")
        parts.append(before)
    return "".join(parts)


def _is_printable(character: str) -> bool:
    is_space = unicodedata.category(character) == "Zs"
    return character.isprintable() or is_space or character in _JOINERS


def _escape(character: str) -> str:
    """A character escaped as in a Python string, surrogates too."""
    return _SHORT.get(character) or character.encode("unicode_escape").decode("ascii")

"""Names from outside, as a terminal and a spreadsheet can show them without obeying them."""

import re
import unicodedata

_JOINERS = "\u200c\u200d"  # zero-width, part of the spelling of Persian words and of emoji
_SHORT = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_BEGINS_FORMULA = ("=", "+", "-", "@", "'", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What a spreadsheet takes for the start of a formula, its wide forms too; and our own mark."""
_SPLITS = re.compile(rf";(?=[\s\"]*[{re.escape(''.join(_BEGINS_FORMULA))}])")
"""Where a semicolon separates cells, in many countries, a formula would begin after it."""


def printable(text: object) -> str:
    r"""A text without what a terminal would act on: controls, escapes, changes of direction.

    >>> print(printable("Käfer\x1b[2J 1.png"), printable("a\u202egnp.exe"))
    Käfer\x1b[2J 1.png a\u202egnp.exe

    Bytes of a name that are no UTF-8 are shown as Python has them, `\udcff`. Lines stay lines.
    """
    return "".join(c if c == "\n" or _is_shown(c) else _escaped(c) for c in str(text))


def as_cell(text: object) -> str:
    r"""A text as the cell of a table: printable, one line, and never a formula.

    A backslash is doubled; before what would begin a formula, or with an apostrophe, stands an
    apostrophe. `text_of_cell` turns it back.

    >>> print(as_cell("=1+1"), as_cell("it's"), as_cell("a\tb\\c"))
    '=1+1 it's a\tb\\c
    """
    shown = "".join(c if _is_shown(c) and c != "\\" else _escaped(c) for c in str(text))
    shown = _SPLITS.sub(r"\\x3b", shown)
    return f"'{shown}" if shown.lstrip().startswith(_BEGINS_FORMULA) else shown


def text_of_cell(cell: str) -> str:
    r"""The text of which `as_cell` has made a cell.

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


def _is_shown(character: str) -> bool:
    is_space = unicodedata.category(character) == "Zs"
    return character.isprintable() or is_space or character in _JOINERS


def _escaped(character: str) -> str:
    """As in a Python string; `unicode_escape` leaves no surrogate out."""
    return _SHORT.get(character) or character.encode("unicode_escape").decode("ascii")

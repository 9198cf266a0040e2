"""Recognise parts of the data with unusual names by the content of their folders."""

import re
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path

from lit_finetune._errors import some_of
from lit_finetune.classes.names import normalized

from .skipped import summary

_SHORT = {
    *("tr", "trn", "trg", "te", "tst", "ts", "vl", "vd", "vld", "fold", "holdout", "heldout"),
    *("query", "gallery", "support", "labeled", "unlabeled", "labelled", "unlabelled"),
}
"""Usual abbreviations for parts of data, besides the words in `split_names`."""


def refuse_hidden_parts(folder: Path, inside: Mapping[str, Sequence[str]]) -> None:
    """Refuse folders that all contain the same folders: they may be parts, not classes.

    >>> refuse_hidden_parts(Path("pets"), {"cat": ["indoor", "outdoor"], "dog": []})

    Args:
        folder: Contains the folders.
        inside: The names of the folders in each; none if it contains images itself.

    Raises:
        ValueError: Explains both readings, and what to do for each.
    """
    names = [{normalized(name).casefold() for name in each} for each in inside.values()]
    largest = max(names, key=len)
    are_same = all(each == largest for each in names)
    # A small part may lack a class; the folders within classes differ more often.
    are_parts = all(each <= largest for each in names) and are_numbered(inside)
    if len(inside) < 2 or min(map(len, names)) < 2 or not (are_same or are_parts):
        return
    same = max(inside.values(), key=len)
    listed = some_of([f'"{name}"' for name in inside])
    raise ValueError(
        f"The folders {summary(inside)} in '{folder}' hold the same folders each, {summary(same)}:"
        f" they may be classes, or parts of the data with the classes in them. If {some_of(same)}"
        " are the classes, rename the parts to train, val and test, or link to them by these"
        " names."
        f" If {some_of(list(inside))} are, say so: `classes=[{listed}]`, on the command line"
        f" `--data.classes='[{listed}]'`."
    )


def are_numbered(names: Iterable[str]) -> bool:
    """Whether names differ only by a number or a letter, or abbreviate a part.

    >>> [are_numbered(names) for names in (["fold1", "fold2"], ["A", "B"], ["trn", "tst"])]
    [True, True, True]
    >>> are_numbered(["cat", "dog"])
    False
    """
    folded = [normalized(name).casefold() for name in names]
    if any(word in _SHORT for name in folded for word in re.findall(r"[^\W\d_]+", name)):
        return True
    return len({re.sub(r"(\d+|(?<![^\W\d_])[a-z])$", "", name) for name in folded}) == 1


def ordered_as_given(found: Sequence[str], given: Sequence[str], folder: Path) -> list[str]:
    """The class folders in the order of the user.

    >>> ordered_as_given(["ant", "bee"], ["bee", "ant"], Path("photos"))
    ['bee', 'ant']

    Raises:
        TypeError: The names have no order.
        ValueError: The folders have other names; the message contains both lists.
    """
    if isinstance(given, str | Set | Mapping) or not isinstance(given, Iterable):
        raise TypeError(
            f"`classes` must be a list of names in the order of their labels, but got"
            f" {type(given).__name__} {given!r:.200}."
        )
    by_name = {normalized(name): name for name in found}
    wanted = [normalized(str(name)) for name in given]
    if sorted(wanted) != sorted(by_name):
        raise ValueError(
            f"`classes` has {summary(map(str, given))}, but '{folder}' has the folders"
            f" {summary(found)}. Give the names of these folders, in the order of their labels."
        )
    return [by_name[name] for name in wanted]

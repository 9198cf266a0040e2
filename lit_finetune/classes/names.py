"""Read and compare the names of classes."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

from lit_finetune._errors import some_of
from lit_finetune.classes.imagenet import as_categories


def numbered(num_classes: int) -> tuple[str, ...]:
    """The names of classes without names: their numbers.

    >>> numbered(3)
    ('0', '1', '2')
    """
    return tuple(str(index) for index in range(num_classes))


def as_names(classes: Any) -> list[str] | None:
    """The names in a data set's `classes`; None if these are not names.

    >>> as_names(("ant", "bee")), as_names([3, 5]), as_names(10), as_names([("tench", "Tinca")])
    (['ant', 'bee'], ['3', '5'], None, None)
    """
    has_order = not isinstance(classes, str | bytes | dict | set | frozenset)
    if not has_order or not isinstance(classes, Iterable):
        return None
    listed = list(classes)
    are_names = bool(listed) and all(isinstance(each, str | Integral) for each in listed)
    return [str(each) for each in listed] if are_names else None


def are_generic(names: Sequence[str]) -> bool:
    """Whether names only number the outputs, as in a default config.

    >>> [are_generic(names) for names in (["LABEL_0", "LABEL_1"], ["0", "1"], ["1", "0"])]
    [True, True, False]
    """
    prefixes = ("", "LABEL_", "label_", "class_")
    return any(list(names) == [f"{prefix}{i}" for i in range(len(names))] for prefix in prefixes)


def unique_names(names: Sequence[str]) -> tuple[str, ...]:
    """The names; repeated ones get their index: ImageNet has two cranes.

    >>> unique_names(["crane", "tench", "crane"])
    ('crane (0)', 'tench', 'crane (2)')
    """
    counts = Counter(map(normalized, names))
    return tuple(
        f"{name} ({index})" if counts[normalized(name)] > 1 else name
        for index, name in enumerate(names)
    )


def config_classes(config: Any) -> tuple[str, ...]:
    """The classes in a config of Hugging Face; empty if it only numbers them.

    >>> from argparse import Namespace
    >>> config_classes(Namespace(id2label={1: "bee", 0: "ant"}))
    ('ant', 'bee')
    """
    by_index = getattr(config, "id2label", None)
    if not isinstance(by_index, dict) or set(by_index) != set(range(len(by_index))):
        return ()
    names = unique_names([str(by_index[index]) for index in range(len(by_index))])
    return () if are_generic(names) and names != numbered(len(names)) else names


def normalized(name: str) -> str:
    """A name in Unicode's normal form: macOS writes `é` as two characters.

    >>> normalized("e" + chr(0x301)) == chr(0xE9)
    True
    """
    return unicodedata.normalize("NFC", name)


def reordering(data: Sequence[str], head: Sequence[str]) -> list[int] | None:
    """For each class of the data, its index in the head; None if the names differ.

    >>> reordering(["ant", "bee", "cat"], ["cat", "ant", "bee"])
    [1, 2, 0]
    >>> reordering(["ant", "bee"], ["ant", "wasp"]) is None
    True
    """
    for read in (list, lambda names: as_categories(names) or list(names)):
        data_names, head_names = (
            [normalized(name) for name in read(names)] for names in (data, head)
        )
        indices = {name: index for index, name in enumerate(head_names)}
        if sorted(data_names) == sorted(head_names) and len(indices) == len(head_names):
            return [indices[name] for name in data_names]
    return _by_synonyms(data, head)


def _by_synonyms(data: Sequence[str], head: Sequence[str]) -> list[int] | None:
    """The same if one list has several names for a class, such as `cat, Felis catus`.

    >>> _by_synonyms(["bee", "cat"], ["cat, Felis catus", "bee"])
    [1, 0]
    >>> _by_synonyms(["Smith, Ann", "Poe"], ["Smith, Bob", "Poe"]) is None
    True
    """
    if len(data) != len(head) or not any(", " in name for name in (*data, *head)):
        return None
    data_names, head_names = (
        [set(normalized(name).split(", ")) for name in names] for names in (data, head)
    )
    by_name: dict[str, set[int]] = {}
    for index, names in enumerate(head_names):
        for name in names:
            by_name.setdefault(name, set()).add(index)
    order = []
    for names in data_names:
        candidates = set().union(*(by_name.get(name, set()) for name in names))
        fits = [
            index
            for index in candidates
            if names <= head_names[index] or head_names[index] <= names
        ]
        if len(fits) != 1:
            return None
        order += fits
    return order if len(set(order)) == len(order) else None


def contradicts(names: Sequence[str], others: Sequence[str]) -> bool:
    """Whether two lists have a common name with a different label in each.

    >>> contradicts(["ant", "bee"], ["Bee", "fly"]), contradicts(["ant", "bee"], ["fly", "bee"])
    (True, False)
    """
    indices = [
        {_casefolded(name): index for index, name in enumerate(each)} for each in (names, others)
    ]
    if len(indices[0]) != len(names) or len(indices[1]) != len(others):
        return list(names) != list(others) and sorted(names) == sorted(others)
    return any(indices[1].get(name, index) != index for name, index in indices[0].items())


def repeated(names: Sequence[str]) -> list[str]:
    """The names that several classes have.

    >>> repeated(["ant", "bee", "ant"])
    ['ant']
    """
    counts = Counter(map(normalized, names))
    return [name for name, count in counts.items() if count > 1]


def listed(names: Sequence[str]) -> str:
    """The number of names, and the first of them, in words.

    >>> listed(["ant", "bee"])
    "2 classes ('ant', 'bee')"
    """
    return f"{len(names)} classes ({some_of([repr(name) for name in names])})"


def difference(data: Sequence[str], head: Sequence[str]) -> str:
    """The names that only the data or only the head has, in words, with a note on near matches.

    >>> difference(["ant", "bee"], ["ant", "wasp", "fly"])
    "only the data has 'bee'; it lacks 'wasp', 'fly'"
    """
    data_names, head_names = ({normalized(name): name for name in names} for names in (data, head))
    extra = [name for key, name in data_names.items() if key not in head_names]
    missing = [name for key, name in head_names.items() if key not in data_names]
    parts = [f"only the data has {some_of(list(map(repr, extra)))}"] if extra else []
    parts += [f"it lacks {some_of(list(map(repr, missing)))}"] if missing else []
    if {_casefolded(name) for name in extra} & {_casefolded(name) for name in missing}:
        parts.append("some differ only in upper and lower case or in spaces")
    return "; ".join(parts)


def _casefolded(name: str) -> str:
    """A name in lower case and without spaces."""
    return "".join(normalized(name).casefold().split())

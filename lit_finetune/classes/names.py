"""The names of classes: as they are given, and two lists of them compared."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

from lit_finetune._errors import some_of
from lit_finetune.classes.imagenet import as_categories


def numbered(num_classes: int) -> tuple[str, ...]:
    """What classes without names are called.

    >>> numbered(3)
    ('0', '1', '2')
    """
    return tuple(str(index) for index in range(num_classes))


def as_names(classes: Any) -> list[str] | None:
    """The names in what a data set has as `classes`; None where these are no names.

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
    """Whether names say no more than the numbers of the outputs, as in a default config.

    >>> [are_generic(names) for names in (["LABEL_0", "LABEL_1"], ["0", "1"], ["1", "0"])]
    [True, True, False]
    """
    prefixes = ("", "LABEL_", "label_", "class_")
    return any(list(names) == [f"{prefix}{i}" for i in range(len(names))] for prefix in prefixes)


def unique_names(names: Sequence[str]) -> tuple[str, ...]:
    """The names, those that occur more than once with their place: ImageNet has two cranes.

    >>> unique_names(["crane", "tench", "crane"])
    ('crane (0)', 'tench', 'crane (2)')
    """
    counts = Counter(map(spelled, names))
    return tuple(
        f"{name} ({index})" if counts[spelled(name)] > 1 else name
        for index, name in enumerate(names)
    )


def config_classes(config: Any) -> tuple[str, ...]:
    """What a config of Hugging Face calls the classes; nothing where it only numbers them.

    >>> from argparse import Namespace
    >>> config_classes(Namespace(id2label={1: "bee", 0: "ant"}))
    ('ant', 'bee')
    """
    by_index = getattr(config, "id2label", None)
    if not isinstance(by_index, dict) or set(by_index) != set(range(len(by_index))):
        return ()
    names = unique_names([str(by_index[index]) for index in range(len(by_index))])
    return () if are_generic(names) and names != numbered(len(names)) else names


def spelled(name: str) -> str:
    """A name in one spelling of Unicode: macOS writes `é` as two characters.

    >>> spelled("e" + chr(0x301)) == chr(0xE9)
    True
    """
    return unicodedata.normalize("NFC", name)


def reordering(data: Sequence[str], head: Sequence[str]) -> list[int] | None:
    """For each class of the data the place where the head has it; None where the names differ.

    >>> reordering(["ant", "bee", "cat"], ["cat", "ant", "bee"])
    [1, 2, 0]
    >>> reordering(["ant", "bee"], ["ant", "wasp"]) is None
    True
    """
    for read in (list, lambda names: as_categories(names) or list(names)):
        wanted, found = ([spelled(name) for name in read(names)] for names in (data, head))
        places = {name: index for index, name in enumerate(found)}
        if sorted(wanted) == sorted(found) and len(places) == len(found):
            return [places[name] for name in wanted]
    return _by_synonyms(data, head)


def _by_synonyms(data: Sequence[str], head: Sequence[str]) -> list[int] | None:
    """The same where one of both has more names for a class, as `cat, Felis catus`.

    >>> _by_synonyms(["bee", "cat"], ["cat, Felis catus", "bee"])
    [1, 0]
    >>> _by_synonyms(["Smith, Ann", "Poe"], ["Smith, Bob", "Poe"]) is None
    True
    """
    if len(data) != len(head) or not any(", " in name for name in (*data, *head)):
        return None
    wanted, found = ([set(spelled(name).split(", ")) for name in names] for names in (data, head))
    by_name: dict[str, set[int]] = {}
    for place, names in enumerate(found):
        for name in names:
            by_name.setdefault(name, set()).add(place)
    order = []
    for names in wanted:
        near = set().union(*(by_name.get(name, set()) for name in names))
        fits = [place for place in near if names <= found[place] or found[place] <= names]
        if len(fits) != 1:
            return None
        order += fits
    return order if len(set(order)) == len(order) else None


def contradicts(names: Sequence[str], others: Sequence[str]) -> bool:
    """Whether two lists have a name in common that stands for another label in each.

    >>> contradicts(["ant", "bee"], ["Bee", "fly"]), contradicts(["ant", "bee"], ["fly", "bee"])
    (True, False)
    """
    places = [{_folded(name): place for place, name in enumerate(each)} for each in (names, others)]
    if len(places[0]) != len(names) or len(places[1]) != len(others):
        return list(names) != list(others) and sorted(names) == sorted(others)
    return any(places[1].get(name, place) != place for name, place in places[0].items())


def repeated(names: Sequence[str]) -> list[str]:
    """The names that more than one class has.

    >>> repeated(["ant", "bee", "ant"])
    ['ant']
    """
    counts = Counter(map(spelled, names))
    return [name for name, count in counts.items() if count > 1]


def listed(names: Sequence[str]) -> str:
    """How many names there are, and the first of them.

    >>> listed(["ant", "bee"])
    "2 classes ('ant', 'bee')"
    """
    return f"{len(names)} classes ({some_of([repr(name) for name in names])})"


def difference(data: Sequence[str], head: Sequence[str]) -> str:
    """What the data has that a head has not, what it lacks, and whether that differs by little.

    >>> difference(["ant", "bee"], ["ant", "wasp", "fly"])
    "only the data has 'bee'; it lacks 'wasp', 'fly'"
    """
    ours, theirs = ({spelled(name): name for name in names} for names in (data, head))
    extra = [name for key, name in ours.items() if key not in theirs]
    missing = [name for key, name in theirs.items() if key not in ours]
    said = [f"only the data has {some_of(list(map(repr, extra)))}"] if extra else []
    said += [f"it lacks {some_of(list(map(repr, missing)))}"] if missing else []
    if {_folded(name) for name in extra} & {_folded(name) for name in missing}:
        said.append("some differ in upper and lower case or in spaces alone")
    return "; ".join(said)


def _folded(name: str) -> str:
    """A name without regard to upper and lower case and to spaces."""
    return "".join(spelled(name).casefold().split())

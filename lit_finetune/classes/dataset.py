"""What a data set calls its classes, whichever attribute holds it and whatever wraps it."""

import copy
import operator
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from inspect import getattr_static
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from lit_finetune.classes.names import as_names, contradicts, listed, spelled

_ATTRIBUTES = ("classes", "class_to_idx", "class_names", "idx_to_class", "idx_to_label")
_FURTHER = ("categories",)
_MOST_LOOKED_AT = 6
"""So many pictures show whether a wrapper leaves labels as they are."""
_DEEPEST = 10


def declared_classes(owner: Any) -> list[str] | None:
    """The class names that an object has itself, in the order of their labels.

    >>> from argparse import Namespace
    >>> declared_classes(Namespace(class_to_idx={"bee": 1, "ant": 0}))
    ['ant', 'bee']

    Args:
        owner: A data set or a data module.

    Raises:
        ValueError: Two of its attributes give one class two labels.
    """
    found = {name: names for name in _ATTRIBUTES if (names := in_order(_get(owner, name)))}
    if not found:
        return None
    first, *others = found
    for other in others:
        if not contradicts(found[other], found[first]):
            continue
        if other == "class_to_idx" and _is_of_torchvision(owner):
            return found[other]  # it makes the labels; `classes` may be sorted otherwise
        raise ValueError(
            f"Of {type(owner).__name__}, `{first}` has {listed(found[first])}, and `{other}`"
            f" {listed(found[other])}, in the order of their labels: one of them is wrong, and a"
            " label would stand for another class. Give both the same order."
        )
    return found[first]


def dataset_classes(dataset: Any, depth: int = 0) -> list[str] | None:
    """The class names of a data set, in the order of its labels; None where it does not tell.

    It may be a part of another, several in one, or wrapped by a class of the user's own that leaves
    the labels as they are.

    Raises:
        ValueError: One label stands for different classes in it.
    """
    if dataset is None or depth > _DEEPEST:
        return None
    names = _own_names(dataset)
    if names is None:
        return _inner_classes(dataset, depth + 1)
    return _after(names, getattr(dataset, "target_transform", None))


def in_order(classes: Any) -> list[str] | None:
    """Names by their labels, from a list or a mapping in either direction; None for anything else.

    A class of several names has them in one, as in ImageNet's lists: `tench, Tinca tinca`.

    >>> in_order({"bee": 1, "ant": 0}), in_order({0: "ant"}), in_order([("ant", "Formica")])
    (['ant', 'bee'], ['ant'], ['ant, Formica'])
    """
    if isinstance(classes, Mapping):
        return _from_mapping(classes)
    if isinstance(classes, list | tuple) and any(
        isinstance(each, list | tuple) for each in classes
    ):
        parts = [[each] if isinstance(each, str) else as_names(each) for each in classes]
        return None if None in parts else [", ".join(each) for each in parts if each]
    return as_names(classes)


def one_of(lists: Iterable[list[str] | None]) -> list[str] | None:
    """The names that all have, of those that have any.

    Raises:
        ValueError: They differ.
    """
    named = [names for names in lists if names]
    for names in named[1:]:
        if not is_same(names, named[0]):
            raise ValueError(
                f"One data set has {listed(named[0])}, another beside it {listed(names)}, in the"
                " order of their labels. So a label stands for two classes: give all the same"
                " classes in the same order."
            )
    return named[0] if named else None


def is_same(names: Sequence[str], others: Sequence[str]) -> bool:
    """Whether two lists have the same names in the same order."""
    return list(map(spelled, names)) == list(map(spelled, others))


def _from_mapping(classes: Mapping[Any, Any]) -> list[str] | None:
    by_label: dict[int, list[str]] = {}
    for key, value in classes.items():
        are_texts = isinstance(key, str) and isinstance(value, str)
        is_number = isinstance(key, Integral) or (are_texts and key.isdecimal())
        label, name = (key, value) if is_number else (value, key)
        if not isinstance(name, str) or (index := _as_label(label)) is None:
            return None
        by_label.setdefault(index, []).append(name)
    if not by_label or set(by_label) != set(range(len(by_label))):
        return None
    return [", ".join(by_label[label]) for label in range(len(by_label))]


def _as_label(value: Any) -> int | None:
    if isinstance(value, str):
        return int(value) if value.isdecimal() else None
    with suppress(TypeError, ValueError):
        return operator.index(value)
    return None


def _own_names(dataset: Any) -> list[str] | None:
    """The names of a data set itself, where they are those of its labels."""
    kinds = _get(dataset, "_target_types") or _get(dataset, "target_type")
    if isinstance(kinds, list) and _is_of_torchvision(dataset):
        return _names_of_kinds(dataset, kinds)
    if (names := declared_classes(dataset)) is not None:
        return names
    for name in _FURTHER:
        if (names := in_order(_get(dataset, name))) is not None:
            return names
    return _of_features(_get(dataset, "features"))


def _names_of_kinds(dataset: Any, kinds: list[Any]) -> list[str] | None:
    """The names of the one kind of labels that an OxfordIIITPet or INaturalist gives."""
    if len(kinds) != 1:
        return None
    by_kind = {
        "category": ("classes", "categories"),
        "binary-category": ("bin_classes",),
        "full": ("all_categories",),
    }
    if kinds[0] in by_kind:
        found = (in_order(_get(dataset, name)) for name in by_kind[kinds[0]])
        return next((names for names in found if names), None)
    index = _get(dataset, "categories_index")
    return in_order(index.get(kinds[0])) if isinstance(index, Mapping) else None


def _of_features(features: Any) -> list[str] | None:
    """The names of the one column of classes in a data set of Hugging Face."""
    if not isinstance(features, Mapping):
        return None
    columns = {name: each.names for name, each in features.items() if as_names(_get(each, "names"))}
    if len(columns) > 1:
        columns = {name: names for name, names in columns.items() if name in ("label", "labels")}
    return as_names(next(iter(columns.values()))) if len(columns) == 1 else None


def _after(names: list[str], transform: Callable[[Any], Any] | None) -> list[str] | None:
    """The names in the order of the labels that a `target_transform` makes; None if of no order."""
    if transform is None:
        return names
    try:
        labels = [_as_label(transform(label)) for label in range(len(names))]
    except Exception:  # of the user's own, for whatever it expects in the place of a label
        return None
    if set(labels) != set(range(len(names))):
        return None
    return [names[labels.index(label)] for label in range(len(names))]


def _inner_classes(dataset: Any, depth: int) -> list[str] | None:
    """The names of what a data set without names of its own is made of."""
    if isinstance(parts := _get(dataset, "datasets"), list | tuple):  # of a ConcatDataset
        names = one_of(dataset_classes(part, depth) for part in parts)
    else:
        held = _held_by(dataset)
        found = [names for each in held.values() if (names := dataset_classes(each, depth))]
        if not found or any(not is_same(names, found[0]) for names in found):
            return None
        inner = next(iter(held.values()))
        is_own = not type(dataset).__module__.startswith(("torch.", "lit_finetune."))
        if is_own and len(held) == 1 and not _keeps_labels(dataset, inner):
            return None
        names = found[0]
    return names and _after(names, getattr(dataset, "target_transform", None))


def _held_by(dataset: Any) -> dict[str, Any]:
    """The data sets among the attributes of one, by name."""
    held = {**getattr(dataset, "__dict__", {})}
    if not _is_dataset(held.get("dataset")) and _is_dataset(inner := _get(dataset, "dataset")):
        held["dataset"] = inner  # a property
    found = {name: each for name, each in held.items() if _is_dataset(each)}
    return {name: each for name, each in found.items() if each is not dataset}


def _is_dataset(value: Any) -> bool:
    if isinstance(value, type | torch.nn.Module):
        return False
    return isinstance(value, Dataset | DataLoader) or any(
        isinstance(_get(value, name), Mapping) for name in ("class_to_idx", "features")
    )


def _keeps_labels(outer: Any, inner: Any) -> bool:
    """Whether a user's own wrapper leaves labels as they are, as far as a few pictures show.

    Copies are asked, so that no file that they open is shared with workers.
    """
    indices = _get(outer, "indices")
    try:
        outer, inner = _copied(outer), _copied(inner)
        length = len(outer) if indices is not None else min(len(outer), len(inner))
        count = min(length, _MOST_LOOKED_AT)
        with _no_draws():
            for place in (number * length // count for number in range(count)):
                of_inner = place if indices is None else int(indices[place])
                given, held = (_label_of(outer[place]), _label_of(inner[of_inner]))
                if given is not None and held is not None and given != held:
                    return False
    except Exception:  # it cannot be asked here; a run would say why
        return True
    return True


def _label_of(item: Any) -> int | None:
    return _as_label(item[1]) if isinstance(item, list | tuple) and len(item) > 1 else None


def _copied(dataset: Any, depth: int = 0) -> Any:
    twin = copy.copy(dataset)
    if depth <= _DEEPEST:
        for name, each in _held_by(dataset).items():
            if name in getattr(twin, "__dict__", {}):
                vars(twin)[name] = _copied(each, depth + 1)
    return twin


@contextmanager
def _no_draws() -> Iterator[None]:
    """Let global generators go on afterwards as if nothing had been drawn."""
    own, of_numpy, of_torch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(own)
        np.random.set_state(of_numpy)
        torch.set_rng_state(of_torch)


def _is_of_torchvision(dataset: Any) -> bool:
    return any(each.__module__.startswith("torchvision.datasets") for each in type(dataset).__mro__)


def _get(owner: Any, name: str) -> Any:
    """An attribute; None where there is none, or where it is one of a wrapped data set."""
    is_own = getattr_static(owner, name, None) is not None
    wraps = hasattr(type(owner), "__getattr__") and any(
        isinstance(each, Dataset) for each in getattr(owner, "__dict__", {}).values()
    )
    if wraps and not is_own:
        return None
    if name == "classes":
        return getattr(owner, name, None)
    with suppress(
        Exception
    ):  # a property of the user's own, which nobody may have meant to be asked
        return getattr(owner, name, None)
    return None

"""Find the class names of a data set, in its attributes or in the data sets that it wraps."""

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

from lit_finetune.classes.names import as_names, contradicts, listed, normalized

_ATTRIBUTES = ("classes", "class_to_idx", "class_names", "idx_to_class", "idx_to_label")
_MORE_ATTRIBUTES = ("categories",)
_NUM_CHECKED = 6
"""The number of images that are compared to see whether a wrapper keeps labels."""
_MAX_CLASSES = 100
"""The number of classes of which one image is compared."""
_MAX_DEPTH = 10


def declared_classes(owner: Any) -> list[str] | None:
    """The class names in an object's own attributes, in the order of their labels.

    >>> from argparse import Namespace
    >>> declared_classes(Namespace(class_to_idx={"bee": 1, "ant": 0}))
    ['ant', 'bee']

    Args:
        owner: A data set or a data module.

    Raises:
        ValueError: Two of its attributes give a class different labels.
    """
    found = {name: names for name in _ATTRIBUTES if (names := in_order(_get(owner, name)))}
    if not found:
        return None
    first, *others = found
    for other in others:
        if not contradicts(found[other], found[first]):
            continue
        if other == "class_to_idx" and _is_of_torchvision(owner):
            return found[other]  # it defines the labels; `classes` may be sorted otherwise
        raise ValueError(
            f"Of {type(owner).__name__}, `{first}` has {listed(found[first])}, and `{other}`"
            f" {listed(found[other])}, in the order of their labels: one of them is wrong, and a"
            " label would stand for another class. Give both the same order."
        )
    return found[first]


def dataset_classes(dataset: Any, depth: int = 0) -> list[str] | None:
    """The class names of a data set, in the order of its labels; None if they are unknown.

    It may be a subset, a concatenation, or a user's wrapper that keeps the labels.

    Raises:
        ValueError: A label stands for different classes in it.
    """
    if dataset is None or depth > _MAX_DEPTH:
        return None
    names = _declared_names(dataset)
    if names is None:
        return _inner_classes(dataset, depth + 1)
    return _apply_target_transform(names, getattr(dataset, "target_transform", None))


def in_order(classes: Any) -> list[str] | None:
    """Names in the order of labels, from a list or a mapping in either direction; else None.

    Several names of a class are joined, as in ImageNet's lists: `tench, Tinca tinca`.

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


def common_classes(lists: Iterable[list[str] | None]) -> list[str] | None:
    """The common names of all lists that are not None.

    Raises:
        ValueError: The lists differ.
    """
    named = [names for names in lists if names]
    for names in named[1:]:
        if not have_same_order(names, named[0]):
            raise ValueError(
                f"One data set has {listed(named[0])}, another beside it {listed(names)}, in the"
                " order of their labels. So a label stands for two classes: give all the same"
                " classes in the same order."
            )
    return named[0] if named else None


def have_same_order(names: Sequence[str], others: Sequence[str]) -> bool:
    """Whether two lists have the same names in the same order."""
    return list(map(normalized, names)) == list(map(normalized, others))


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


def _declared_names(dataset: Any) -> list[str] | None:
    """The names in a data set's own attributes, if they are those of its labels."""
    target_types = _get(dataset, "_target_types") or _get(dataset, "target_type")
    if isinstance(target_types, list) and _is_of_torchvision(dataset):
        return _names_of_target_types(dataset, target_types)
    if (names := declared_classes(dataset)) is not None:
        return names
    for name in _MORE_ATTRIBUTES:
        if (names := in_order(_get(dataset, name))) is not None:
            return names
    return _names_in_features(_get(dataset, "features"))


def _names_of_target_types(dataset: Any, target_types: list[Any]) -> list[str] | None:
    """The names of the target type of torchvision's OxfordIIITPet or INaturalist, if it is one."""
    if len(target_types) != 1:
        return None
    by_type = {
        "category": ("classes", "categories"),
        "binary-category": ("bin_classes",),
        "full": ("all_categories",),
    }
    if target_types[0] in by_type:
        found = (in_order(_get(dataset, name)) for name in by_type[target_types[0]])
        return next((names for names in found if names), None)
    index = _get(dataset, "categories_index")
    return in_order(index.get(target_types[0])) if isinstance(index, Mapping) else None


def _names_in_features(features: Any) -> list[str] | None:
    """The names of the label column in a Hugging Face data set, if there is one."""
    columns = _label_columns(features)
    return as_names(next(iter(columns.values()))) if len(columns) == 1 else None


def _label_columns(features: Any) -> dict[str, Any]:
    """The names in each column of a Hugging Face data set that may be that of the labels."""
    if not isinstance(features, Mapping):
        return {}
    columns = {name: each.names for name, each in features.items() if as_names(_get(each, "names"))}
    if len(columns) > 1:
        columns = {name: names for name, names in columns.items() if name in ("label", "labels")}
    return columns


def _apply_target_transform(
    names: list[str], transform: Callable[[Any], Any] | None
) -> list[str] | None:
    """The names in the order of labels after a `target_transform`; None if it is no permutation."""
    if transform is None:
        return names
    try:
        labels = [_as_label(transform(label)) for label in range(len(names))]
    except Exception:  # any error of a user's transform on these labels
        return None
    if set(labels) != set(range(len(names))):
        return None
    return [names[labels.index(label)] for label in range(len(names))]


def _inner_classes(dataset: Any, depth: int) -> list[str] | None:
    """The names of the data sets inside a data set without names of its own."""
    if isinstance(parts := _get(dataset, "datasets"), list | tuple):  # of a ConcatDataset
        names = common_classes(dataset_classes(part, depth) for part in parts)
    else:
        members = _inner_datasets(dataset)
        found = [names for each in members.values() if (names := dataset_classes(each, depth))]
        if not found or any(not have_same_order(names, found[0]) for names in found):
            return None
        inner = next(iter(members.values()))
        is_own = not type(dataset).__module__.startswith(("torch.", "lit_finetune."))
        if is_own and len(members) == 1 and not _keeps_labels(dataset, inner):
            return None
        names = found[0]
    return names and _apply_target_transform(names, getattr(dataset, "target_transform", None))


def _inner_datasets(dataset: Any) -> dict[str, Any]:
    """The data sets among the attributes of a data set, by name."""
    members = {**getattr(dataset, "__dict__", {})}
    if not _is_dataset(members.get("dataset")) and _is_dataset(inner := _get(dataset, "dataset")):
        members["dataset"] = inner  # a property
    found = {name: each for name, each in members.items() if _is_dataset(each)}
    return {name: each for name, each in found.items() if each is not dataset}


def _is_dataset(value: Any) -> bool:
    if isinstance(value, type | torch.nn.Module):
        return False
    return isinstance(value, Dataset | DataLoader) or any(
        isinstance(_get(value, name), Mapping) for name in ("class_to_idx", "features")
    )


def _keeps_labels(outer: Any, inner: Any) -> bool:
    """Whether a user's wrapper keeps the labels of a few images, one of each class if possible.

    Copies of the data sets are read, so that files that they open are not shared with workers.
    """
    indices, column = _get(outer, "indices"), _label_column(inner)
    try:
        outer, inner = _copy_deep(outer), _copy_deep(inner)
        length = len(outer) if indices is not None else min(len(outer), len(inner))
        count, is_compared = min(length, _NUM_CHECKED), False
        places = {number * length // count for number in range(count)}
        if indices is None:
            places |= {place for place in _first_of_classes(inner) if place < length}
        with _preserve_random_state():
            for index in sorted(places):
                inner_index = index if indices is None else int(indices[index])
                items = outer[index], inner[inner_index]
                labels = [_label_of(item, column) for item in items]
                if None not in labels and labels[0] != labels[1]:
                    return False
                is_compared = is_compared or None not in labels
    except Exception:  # reading fails here; a run would report why
        return True
    return is_compared or not count


def _label_column(dataset: Any, depth: int = 0) -> str:
    """The name of the label in rows that are mappings."""
    if columns := _label_columns(_get(dataset, "features")):
        return next(iter(columns))
    members = _inner_datasets(dataset) if depth < _MAX_DEPTH else {}
    return _label_column(next(iter(members.values())), depth + 1) if members else "label"


def _first_of_classes(dataset: Any) -> list[int]:
    """The place of the first image of each of up to `_MAX_CLASSES` classes, if labels are known."""
    targets = _get(dataset, "targets")
    if not isinstance(targets, list | tuple | np.ndarray | torch.Tensor) or not len(targets):
        return []
    _, places = np.unique(np.asarray(targets), return_index=True)
    found: list[int] = places.tolist()[:_MAX_CLASSES]
    return found


def _label_of(item: Any, column: str) -> int | None:
    if isinstance(item, Mapping):
        return _as_label(item.get(column))
    return _as_label(item[1]) if isinstance(item, list | tuple) and len(item) > 1 else None


def _copy_deep(dataset: Any, depth: int = 0) -> Any:
    copied = copy.copy(dataset)
    if depth <= _MAX_DEPTH:
        for name, each in _inner_datasets(dataset).items():
            if name in getattr(copied, "__dict__", {}):
                vars(copied)[name] = _copy_deep(each, depth + 1)
    return copied


@contextmanager
def _preserve_random_state() -> Iterator[None]:
    """Restore the states of the global random generators after a context."""
    python_state, numpy_state, torch_state = (
        random.getstate(),
        np.random.get_state(),
        torch.get_rng_state(),
    )
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)


def _is_of_torchvision(dataset: Any) -> bool:
    return any(each.__module__.startswith("torchvision.datasets") for each in type(dataset).__mro__)


def _get(owner: Any, name: str) -> Any:
    """An attribute of an object itself; None if it has none, or only a wrapped data set has it."""
    is_own = getattr_static(owner, name, None) is not None
    wraps = hasattr(type(owner), "__getattr__") and any(
        isinstance(each, Dataset) for each in getattr(owner, "__dict__", {}).values()
    )
    if wraps and not is_own:
        return None
    if name == "classes":
        return getattr(owner, name, None)
    with suppress(Exception):  # an unrelated property of the user's class may raise anything
        return getattr(owner, name, None)
    return None

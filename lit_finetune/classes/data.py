"""What data calls its classes: a data module, or the data sets of plain loaders."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from lit_finetune.classes.names import as_names, difference, listed, spelled


def loader_classes(loaders: Any) -> list[str] | None:
    """The class names that the data sets of loaders have, as those of torchvision do.

    They are taken where they say something of the labels: the data set does not turn its labels
    into others.

    Args:
        loaders: A loader, or several in a list or a mapping.

    Raises:
        ValueError: One label stands for different classes in them.
    """
    return _one_of(_dataset_classes(getattr(each, "dataset", None)) for each in _each(loaders))


def refuse_other_validation(
    loaders: Any, train_loaders: Any, classes: Sequence[str] | None
) -> None:
    """Refuse validation pictures whose labels mean other classes than those of training.

    The data set of a folder that lacks a class gives all classes behind it other labels.

    Args:
        loaders: Those of validation.
        train_loaders: Those of training.
        classes: What a data module calls the classes, where training data sets do not.

    Raises:
        ValueError: Both have names, and these differ.
    """
    names, classes = loader_classes(loaders), loader_classes(train_loaders) or classes
    if not names or not classes or _is_same(names, classes):
        return
    raise ValueError(
        f"The validation data has {listed(names)}, the training data {listed(classes)}:"
        f" {_how(names, classes)} (of the validation data). Give both the same classes, a folder"
        " for each."
    )


def _each(loaders: Any) -> Iterator[Any]:
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    if not isinstance(loaders, list | tuple):
        yield loaders
        return
    for loader in loaders:
        yield from _each(loader)


def _dataset_classes(dataset: Any) -> list[str] | None:
    """The names of a data set, or of the one that it is a part of."""
    if dataset is None or getattr(dataset, "target_transform", None) is not None:
        return None
    if (classes := getattr(dataset, "classes", None)) is not None:
        return as_names(classes)
    parts = getattr(dataset, "datasets", None)  # of a ConcatDataset
    if isinstance(parts, Iterable):
        return _one_of(map(_dataset_classes, parts))
    return _dataset_classes(getattr(dataset, "dataset", None))


def _one_of(lists: Iterable[list[str] | None]) -> list[str] | None:
    """The names that all have, of those that have any."""
    named = [names for names in lists if names]
    for names in named[1:]:
        if not _is_same(names, named[0]):
            raise ValueError(
                f"One data set has {listed(named[0])}, another beside it {listed(names)}:"
                f" {_how(names, named[0])} (of the second). So a label stands for two classes: give"
                " all the same classes in the same order."
            )
    return named[0] if named else None


def _is_same(names: Sequence[str], others: Sequence[str]) -> bool:
    return list(map(spelled, names)) == list(map(spelled, others))


def _how(names: Sequence[str], others: Sequence[str]) -> str:
    return difference(names, others) or "the same in another order"

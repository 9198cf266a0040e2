"""What data calls its classes: a data module, or the data sets of plain loaders."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from lit_finetune.class_names import as_names, difference, listed, spelled


def loader_classes(loaders: Any) -> list[str] | None:
    """The class names that the data sets of loaders have, as those of torchvision do.

    They are taken where they say something of the labels: the data set does not turn its labels
    into others, and all loaders say the same.

    Args:
        loaders: A loader, or several in a list or a mapping.
    """
    found = [_dataset_classes(getattr(loader, "dataset", None)) for loader in _each(loaders)]
    return found[0] if found and all(other == found[0] for other in found) else None


def refuse_other_validation(loaders: Any, classes: Sequence[str] | None) -> None:
    """Refuse validation pictures whose labels mean other classes than those of training.

    The data set of a folder that lacks a class gives all classes behind it other labels.

    Args:
        loaders: Those of validation.
        classes: Those of training.

    Raises:
        ValueError: Both have names, and these differ.
    """
    names = loader_classes(loaders)
    if not names or not classes or list(map(spelled, names)) == list(map(spelled, classes)):
        return
    how = difference(names, classes) or "the same in another order"
    raise ValueError(
        f"The validation data has {listed(names)}, the training data {listed(classes)}: {how} (of"
        " the validation data). Give both the same classes, a folder for each."
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
        found = [_dataset_classes(part) for part in parts]
        return found[0] if found and all(other == found[0] for other in found) else None
    return _dataset_classes(getattr(dataset, "dataset", None))

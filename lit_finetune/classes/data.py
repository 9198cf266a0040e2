"""What data calls its classes: a data module, or the data sets of plain loaders."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lit_finetune.classes.dataset import dataset_classes, is_same, one_of
from lit_finetune.classes.names import contradicts, difference, listed


def loader_classes(loaders: Any) -> list[str] | None:
    """The class names that the data sets of loaders have, as those of torchvision do.

    Args:
        loaders: A loader, or several in a list or a mapping.

    Raises:
        ValueError: One label stands for different classes in them.
    """
    return one_of(dataset_classes(getattr(each, "dataset", each)) for each in _each(loaders))


def refuse_contradiction(classes: Sequence[str] | None, loaders: Any) -> None:
    """Refuse a data module that gives a class another label than its loaders' data sets do.

    It may call the classes otherwise: `Formica` for `ant`.

    Args:
        classes: What it calls them, in the order of their labels.
        loaders: A loader, or several in a list or a mapping.

    Raises:
        ValueError: Both have a class, each with another label; both lists are named.
    """
    names = loader_classes(loaders) if classes else None
    if classes and names and contradicts(classes, names):
        raise ValueError(
            f"The data module has {listed(classes)}, but the data set of its loader"
            f" {listed(names)}, in the order of their labels: so a label stands for two classes."
            " Let the data module take the names from its data set."
        )


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
    if not names or not classes or is_same(names, classes):
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


def _how(names: Sequence[str], others: Sequence[str]) -> str:
    return difference(names, others) or "the same in another order"

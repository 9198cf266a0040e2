"""The classes of the data: of a data module, or of the data sets of loaders."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lit_finetune.classes.dataset import common_classes, dataset_classes, have_same_order
from lit_finetune.classes.names import contradicts, difference, listed


def loader_classes(loaders: Any) -> list[str] | None:
    """The class names of the data sets of loaders; None if they have none.

    Args:
        loaders: A loader, or several in a list or a mapping.

    Raises:
        ValueError: A label stands for different classes in them.
    """
    return common_classes(
        dataset_classes(getattr(each, "dataset", each)) for each in _flatten(loaders)
    )


def refuse_contradiction(classes: Sequence[str] | None, loaders: Any) -> None:
    """Refuse a data module that gives a class another label than its loaders' data sets do.

    It may have other names for the classes: `Formica` for `ant`.

    Args:
        classes: The data module's classes, in the order of their labels.
        loaders: A loader, or several in a list or a mapping.

    Raises:
        ValueError: A class has different labels in them; the message shows both lists.
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
    """Refuse validation data whose labels stand for other classes than those of training.

    If a folder lacks a class, its data set gives all later classes other labels.

    Args:
        loaders: The validation loaders.
        train_loaders: The training loaders.
        classes: The data module's classes, for training data sets without names.

    Raises:
        ValueError: Both have names, and these differ.
    """
    names, classes = loader_classes(loaders), loader_classes(train_loaders) or classes
    if not names or not classes or have_same_order(names, classes):
        return
    raise ValueError(
        f"The validation data has {listed(names)}, the training data {listed(classes)}:"
        f" {_difference_text(names, classes)} (of the validation data). Give both the same classes,"
        " a folder for each."
    )


def _flatten(loaders: Any) -> Iterator[Any]:
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    if not isinstance(loaders, list | tuple):
        yield loaders
        return
    for loader in loaders:
        yield from _flatten(loader)


def _difference_text(names: Sequence[str], others: Sequence[str]) -> str:
    return difference(names, others) or "the same in another order"

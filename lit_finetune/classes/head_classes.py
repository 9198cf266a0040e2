"""The classes of a head, and how to match them with those of the data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lit_finetune.classes.names import (
    are_generic,
    as_names,
    difference,
    listed,
    numbered,
    reordering,
    repeated,
)

CHECKPOINT = "the checkpoint"
"""The owner of a head that was loaded from a checkpoint."""

Origin = Literal["new", "network", "weights", "trained"]


@dataclass(frozen=True, slots=True)
class HeadClasses:
    """The classes of a head's outputs."""

    names: tuple[str, ...]
    """The name of each output; numbers if there are none."""
    origin: Origin = "new"
    """The source of the names: none (`new`), a published network or a weights file whose head was
    kept, or a training of this model or of a checkpoint's."""
    owner: str = "the model"
    """The owner of the head, for messages."""

    @property
    def is_named(self) -> bool:
        """Whether the outputs have class names."""
        return self.origin != "new"

    @property
    def is_pretrained(self) -> bool:
        """Whether the head has pretrained weights, so that a new one may replace it."""
        return self.origin in ("network", "weights")


@dataclass(frozen=True, slots=True)
class Match:
    """The change that makes a head's outputs those of the data."""

    action: Literal["keep", "name", "reorder", "renew"]
    """Keep the head; name its outputs as the data; reorder them; reset the head."""
    order: tuple[int, ...] = ()
    """For each class of the data, the index of its output."""
    message: str = ""
    """The message to the user."""


def unnamed(num_classes: int) -> HeadClasses:
    """The classes of a head without names.

    >>> unnamed(2)
    HeadClasses(names=('0', '1'), origin='new', owner='the model')
    """
    return HeadClasses(numbered(num_classes))


def user_classes(names: Sequence[str], head: HeadClasses) -> HeadClasses:
    """The classes of a head with a user's names.

    >>> user_classes(["ant", "bee"], unnamed(2)).names
    ('ant', 'bee')

    Raises:
        ValueError: They are not different names, one for each output.
    """
    as_list = as_names(names)
    if as_list is None or len(as_list) != len(head.names) or repeated(as_list):
        raise ValueError(
            f"`classes` are different names for the {len(head.names)} outputs of the head, in their"
            f" order, but got {str(names)[:200]}."
        )
    return HeadClasses(tuple(as_list), "trained")


def match_classes(
    data: Sequence[str],
    head: HeadClasses,
    *,
    trains: bool,
    is_resumed: bool = False,
    is_new: bool = False,
) -> Match:
    """The change that makes label k of the data and output k of a head the same class, by name.

    >>> head = HeadClasses(("cat", "ant"), "network", "its own head")
    >>> match_classes(["ant", "cat"], head, trains=True).order
    (1, 0)

    Args:
        data: The class names of the data, in the order of labels.
        head: The classes of the head.
        trains: Whether the head will train on the data, or be evaluated.
        is_resumed: Whether an optimizer resumes with a state of each output.
        is_new: Whether the head is untrained, so that its outputs have no classes yet.

    Raises:
        ValueError: The data has other classes; the message shows both lists.
    """
    if repeated_names := repeated(data):
        raise ValueError(
            f"The data has {listed(data)}, and several of them are called"
            f" {', '.join(map(repr, repeated_names))}. Give each class a name of its own."
        )
    if len(data) != len(head.names):
        raise ValueError(_other_number(data, head, trains=trains))
    order = reordering(data, head.names)
    has_only_numbers = head.origin == "network" and are_generic(head.names) and order is None
    if not head.is_named or has_only_numbers:
        message = "" if is_new else _matched_by_index(data, head)
        return Match("name" if trains else "keep", message=message)
    if order == list(range(len(data))):
        return Match("name" if trains else "keep")
    if order is None:
        return _match_other_names(data, head, trains=trains, is_resumed=is_resumed)
    lists = f"{_two_lists(data, head)}: the same in another order."
    if is_resumed:
        raise ValueError(
            f"{lists} The resumed optimizer has a state for each of them by index: give the data"
            " the same order, or start a new run from the checkpoint's weights alone, passed as"
            " `weights`."
        )
    return Match(
        "reorder", tuple(order), f"{lists} The head's outputs now follow the data by name."
    )


def other_number(data: Sequence[str] | None, checkpoint: HeadClasses, *, num_classes: int) -> str:
    """The message about a checkpoint with another number of classes than the model's.

    Args:
        data: The class names of the data; None if unknown.
        checkpoint: The classes of the checkpoint.
        num_classes: The model's number of classes.
    """
    saved = listed(checkpoint.names) if checkpoint.is_named else f"{len(checkpoint.names)} classes"
    if data is not None:
        details = f": {difference(data, checkpoint.names)}" if checkpoint.is_named else ""
        return (
            f"The data has {listed(data)}, but the checkpoint {saved}{details}. Use data of the"
            " checkpoint's classes; to train a new head on this data, start a new run from"
            " the checkpoint's weights alone, passed as `weights`."
        )
    return (
        f"The checkpoint has {saved}, but the model num_classes={num_classes}. Load it with its own"
        f" number of classes; `reset_classifier({num_classes})` then puts a new head."
    )


def _match_other_names(
    data: Sequence[str], head: HeadClasses, *, trains: bool, is_resumed: bool
) -> Match:
    lists = f"{_two_lists(data, head)}: {difference(data, head.names)}."
    if trains and head.is_pretrained and not is_resumed:
        return Match("renew", message=f"{lists} So a new head takes the place of that one.")
    raise ValueError(f"{lists} {_advice(data, head, trains=trains)}")


def _other_number(data: Sequence[str], head: HeadClasses, *, trains: bool) -> str:
    if head.is_named:
        lists = f"{_two_lists(data, head)}: {difference(data, head.names)}."
        return f"{lists} {_advice(data, head, trains=trains)}"
    return (
        f"The data has {listed(data)}, but the model num_classes={len(head.names)}. Build the model"
        f" with num_classes={len(data)}; the command line takes the number from the data's"
        " `num_classes`, which has to be that of its `classes`."
    )


def _matched_by_index(data: Sequence[str], head: HeadClasses) -> str:
    """The message if outputs and classes are matched only by their order."""
    has = f"has {listed(head.names)}" if head.is_named else "names no classes"
    return (
        f"{head.owner[:1].upper()}{head.owner[1:]} {has}, so its outputs are matched with the"
        f" data's classes by place: {listed(data)}, in this order."
    )


def _two_lists(data: Sequence[str], head: HeadClasses) -> str:
    """Both lists, in words."""
    return f"The data has {listed(data)}, {head.owner} has {listed(head.names)}"


def _advice(data: Sequence[str], head: HeadClasses, *, trains: bool) -> str:
    if not trains:
        return "Evaluate it on data of its own classes, under their names."
    is_saved = head.owner == CHECKPOINT
    new_run = "start a new run from its weights alone, passed as `weights`, or " if is_saved else ""
    return (
        f"Continue with data of the same classes; for a new head {new_run}call"
        f" `model.reset_classifier({len(data)})` in Python."
    )

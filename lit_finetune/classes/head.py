"""Which classes a head tells apart, and what is done where the data has them otherwise."""

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
"""Whose head it is that a checkpoint has brought."""

Origin = Literal["new", "network", "weights", "trained"]


@dataclass(frozen=True, slots=True)
class HeadClasses:
    """What the outputs of a head stand for."""

    names: tuple[str, ...]
    """The name of each output; numbers where it has none."""
    origin: Origin = "new"
    """Where the names come from: there are none (`new`), a published network or a weights file
    whose head stayed, or a training, by this model or by that of a checkpoint."""
    owner: str = "the model"
    """Whose head it is, for messages."""

    @property
    def is_named(self) -> bool:
        """Whether the names say what the outputs stand for."""
        return self.origin != "new"

    @property
    def is_pretrained(self) -> bool:
        """Whether the head came with weights to start from, so that a new one may replace it."""
        return self.origin in ("network", "weights")


@dataclass(frozen=True, slots=True)
class Match:
    """What makes a head's outputs those of the data."""

    action: Literal["keep", "name", "reorder", "renew"]
    """Leave the head; call its outputs as the data does; reorder them; put a new head."""
    order: tuple[int, ...] = ()
    """For each class of the data the output that stands for it."""
    told: str = ""
    """What the user is told."""


def unnamed(num_classes: int) -> HeadClasses:
    """The classes of a head that nobody has named.

    >>> unnamed(2)
    HeadClasses(names=('0', '1'), origin='new', owner='the model')
    """
    return HeadClasses(numbered(num_classes))


def named_by_hand(names: Sequence[str], head: HeadClasses) -> HeadClasses:
    """The classes of a head whose outputs a user names.

    >>> named_by_hand(["ant", "bee"], unnamed(2)).names
    ('ant', 'bee')

    Raises:
        ValueError: They are no names, not as many, or not different.
    """
    found = as_names(names)
    if found is None or len(found) != len(head.names) or repeated(found):
        raise ValueError(
            f"`classes` are different names for the {len(head.names)} outputs of the head, in their"
            f" order, but got {str(names)[:200]}."
        )
    return HeadClasses(tuple(found), "trained")


def match_classes(
    data: Sequence[str],
    head: HeadClasses,
    *,
    trains: bool,
    is_resumed: bool = False,
    is_new: bool = False,
) -> Match:
    """What makes label k of the data and output k of a head the same class, by name.

    >>> head = HeadClasses(("cat", "ant"), "network", "its own head")
    >>> match_classes(["ant", "cat"], head, trains=True).order
    (1, 0)

    Args:
        data: The class names of the data; the place of each is its label.
        head: Its outputs.
        trains: Whether the head is going to be trained on the data, or measured.
        is_resumed: Whether an optimizer goes on with what it knows of each output.
        is_new: Whether nobody has trained the head, so that its outputs stand for nothing yet.

    Raises:
        ValueError: The data has other classes; both lists are named.
    """
    if same := repeated(data):
        raise ValueError(
            f"The data has {listed(data)}, and several of them are called"
            f" {', '.join(map(repr, same))}. Give each class a name of its own."
        )
    if len(data) != len(head.names):
        raise ValueError(_other_number(data, head, trains=trains))
    order = reordering(data, head.names)
    has_only_numbers = head.origin == "network" and are_generic(head.names) and order is None
    if not head.is_named or has_only_numbers:
        told = "" if is_new else _by_place(data, head)
        return Match("name" if trains else "keep", told=told)
    if order == list(range(len(data))):
        return Match("name" if trains else "keep")
    if order is None:
        return _for_other_names(data, head, trains=trains, is_resumed=is_resumed)
    both = f"{_both(data, head)}: the same in another order."
    if is_resumed:
        raise ValueError(
            f"{both} The optimizer of a run that goes on knows them by their places: give the data"
            " the same order, or start anew from the checkpoint's weights alone, passed as"
            " `weights`."
        )
    return Match("reorder", tuple(order), f"{both} The head's outputs now follow the data by name.")


def other_number(data: Sequence[str] | None, checkpoint: HeadClasses, *, num_classes: int) -> str:
    """What is said of a checkpoint for another number of classes than the model's.

    Args:
        data: The class names of the data, where there are any.
        checkpoint: Those of the checkpoint.
        num_classes: How many the model tells apart.
    """
    have = listed(checkpoint.names) if checkpoint.is_named else f"{len(checkpoint.names)} classes"
    if data is not None:
        lacks = f": {difference(data, checkpoint.names)}" if checkpoint.is_named else ""
        return (
            f"The data has {listed(data)}, but the checkpoint {have}{lacks}. Use data of the"
            " checkpoint's classes; to train a new head on this data, start anew from the"
            " checkpoint's weights alone, passed as `weights`."
        )
    return (
        f"The checkpoint has {have}, but the model num_classes={num_classes}. Load it with its own"
        f" number of classes; `reset_classifier({num_classes})` then puts a new head."
    )


def _for_other_names(
    data: Sequence[str], head: HeadClasses, *, trains: bool, is_resumed: bool
) -> Match:
    both = f"{_both(data, head)}: {difference(data, head.names)}."
    if trains and head.is_pretrained and not is_resumed:
        return Match("renew", told=f"{both} So a new head takes the place of that one.")
    raise ValueError(f"{both} {_advice(data, head, trains=trains)}")


def _other_number(data: Sequence[str], head: HeadClasses, *, trains: bool) -> str:
    if head.is_named:
        both = f"{_both(data, head)}: {difference(data, head.names)}."
        return f"{both} {_advice(data, head, trains=trains)}"
    return (
        f"The data has {listed(data)}, but the model num_classes={len(head.names)}. Build the model"
        f" with num_classes={len(data)}; the command line takes the number from the data's"
        " `num_classes`, which has to be that of its `classes`."
    )


def _by_place(data: Sequence[str], head: HeadClasses) -> str:
    """What is said where nothing but the order tells which output stands for which class."""
    has = f"has {listed(head.names)}" if head.is_named else "names no classes"
    return (
        f"{head.owner[:1].upper()}{head.owner[1:]} {has}, so its outputs are matched with the"
        f" data's classes by place: {listed(data)}, in this order."
    )


def _both(data: Sequence[str], head: HeadClasses) -> str:
    """Both lists; of long ones the first names."""
    return f"The data has {listed(data)}, {head.owner} has {listed(head.names)}"


def _advice(data: Sequence[str], head: HeadClasses, *, trains: bool) -> str:
    if not trains:
        return "Measure it on data of its own classes, under their names."
    is_saved = head.owner == CHECKPOINT
    anew = "start anew from its weights alone, passed as `weights`, or " if is_saved else ""
    return (
        f"Go on with data of the same classes; for a new head {anew}call"
        f" `model.reset_classifier({len(data)})` in Python."
    )

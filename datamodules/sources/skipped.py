"""What a folder of pictures holds besides the pictures that are used, and how it is told."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lit_finetune.images.read import IMAGE_SUFFIXES

from .image_files import is_graphic, is_named_picture, is_of_other_kind

SHOWN = 10


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What is not used of a folder, by paths relative to the data folder."""

    problems: Mapping[str, str] = field(default_factory=dict)
    """What is called a picture and cannot be one, with what it is."""
    repeats: Sequence[str] = ()
    """Links, and further names, of files and folders that are used already."""
    strays: Sequence[str] = ()
    """Files that are no pictures, or are in no class."""
    num_hidden: int = 0
    """How many files and folders are hidden."""

    def together_with(self, other: "LeftOut") -> "LeftOut":
        """What is not used of two folders."""
        return LeftOut(
            {**self.problems, **other.problems},
            sorted([*self.repeats, *other.repeats]),
            sorted([*self.strays, *other.strays]),
            self.num_hidden + other.num_hidden,
        )


def tell_left_out(where: Path, left_out: LeftOut, *, has_classes: bool) -> None:
    """Say what is not used of a folder, and warn where photographs are among it."""
    told = []
    if left_out.strays:
        told.append(f"they are no pictures of a class: {some(left_out.strays)}")
    if left_out.repeats:
        told.append(f"they lead to what is used already: {some(left_out.repeats)}")
    if left_out.num_hidden:
        told.append(f"they are hidden: {left_out.num_hidden}")
    if told:
        rank_zero_info(f"Not used, for {'; for '.join(told)}. This is in '{where}'.")
    loose = [name for name in left_out.strays if is_named_picture(name)]
    if loose and has_classes:
        rank_zero_warn(f"Not used, for they are in no class: {some(loose)}, in '{where}'.")
    others = [name for name in left_out.strays if is_of_other_kind(name)]
    if others:
        tell = rank_zero_info if all(map(is_graphic, others)) else rank_zero_warn
        tell(
            f"Not used, for their kind is not read: {some(others)}, in '{where}'. Pictures are "
            f"read that are called {', '.join(IMAGE_SUFFIXES)}, and others of these formats "
            "whatever they are called. To use these, convert them, to PNG for example."
        )


def some(names: Iterable[str]) -> str:
    """How many there are, and the first few.

    >>> some(["ants", "bees"])
    "2 ('ants', 'bees')"
    """
    names = list(names)
    shown = ", ".join(map(repr, names[:SHOWN]))
    return f"{len(names)} ({shown}{', …' if len(names) > SHOWN else ''})"

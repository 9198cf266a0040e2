"""Report the files of a folder that are not used."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lit_finetune.images.suffixes import IMAGE_SUFFIXES

from .image_files import has_image_suffix, is_graphic, is_unsupported_image

MAX_NAMES = 10


@dataclass(frozen=True, slots=True)
class UnusedEntries:
    """The unused entries of a folder, by paths relative to the data folder."""

    problems: Mapping[str, str] = field(default_factory=dict)
    """Names with the suffix of an image that are no readable files, and what they are."""
    duplicates: Sequence[str] = ()
    """Links and hard links to files and folders that are already used."""
    other_files: Sequence[str] = ()
    """Files that are no images, or are in no class."""
    run_folders: Sequence[str] = ()
    """Folders with the logs and checkpoints of runs."""
    num_hidden: int = 0
    """The number of hidden files and folders."""

    def merge(self, other: "UnusedEntries") -> "UnusedEntries":
        """The unused entries of two folders."""
        return UnusedEntries(
            {**self.problems, **other.problems},
            sorted([*self.duplicates, *other.duplicates]),
            sorted([*self.other_files, *other.other_files]),
            sorted([*self.run_folders, *other.run_folders]),
            self.num_hidden + other.num_hidden,
        )


def report_unused(where: Path, unused: UnusedEntries, *, has_classes: bool) -> None:
    """Report the unused entries of a folder, and warn if photographs are among them."""
    reasons = []
    if unused.other_files:
        reasons.append(f"they are no pictures of a class: {summary(unused.other_files)}")
    if unused.duplicates:
        reasons.append(
            f"they are links to files that are used already: {summary(unused.duplicates)}"
        )
    if unused.run_folders:
        reasons.append(
            f"they are logs and checkpoints of runs, and no class: {summary(unused.run_folders)}"
        )
    if unused.num_hidden:
        reasons.append(f"they are hidden: {unused.num_hidden}")
    if reasons:
        rank_zero_info(f"Not used in '{where}': {'; '.join(reasons)}.")
    unlabelled = [name for name in unused.other_files if has_image_suffix(name)]
    if unlabelled and has_classes:
        text = f"Not used, because they are in no class: {summary(unlabelled)}, in '{where}'."
        rank_zero_warn(text)
    others = [name for name in unused.other_files if is_unsupported_image(name)]
    if others:
        log = rank_zero_info if all(map(is_graphic, others)) else rank_zero_warn
        log(
            f"Not used, because their format is not read: {summary(others)}, in '{where}'. Files "
            f"are read that end in {', '.join(IMAGE_SUFFIXES)}, and files of these formats with "
            "any other name. To use these, convert them, to PNG for example."
        )


def summary(names: Iterable[str]) -> str:
    """The number of names, and the first few.

    >>> summary(["ants", "bees"])
    "2 ('ants', 'bees')"
    """
    names = list(names)
    shown = ", ".join(map(repr, names[:MAX_NAMES]))
    return f"{len(names)} ({shown}{', …' if len(names) > MAX_NAMES else ''})"

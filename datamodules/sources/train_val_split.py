"""The training pictures divided into parts, by a file that every process and every run reads."""

from collections.abc import Collection, Mapping
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from .duplicates import find_copies
from .skipped import some
from .split_file import SplitPlan, read_split, split_by_class, write_split


def divide(
    classes: Mapping[str, str],
    plan: SplitPlan,
    *,
    root: Path,
    split_file: Path,
    unreadable: Collection[str] = (),
) -> dict[str, list[str]]:
    """The pictures of each part, as the split file has them; it is written if it is not there.

    Args:
        classes: The class of each picture.
        plan: How they are divided.
        root: The folder below which the pictures lie. Copies of a file stay together.
        split_file: It stays as it is; what came later is left out.
        unreadable: Those that are skipped; a split is made of the others.
    """
    readable = {name: label for name, label in classes.items() if name not in unreadable}
    if len(plan.fractions()) == 1:
        return {"train": list(classes)}
    if not split_file.exists():
        copies = find_copies(root, list(readable))
        write_split(split_file, split_by_class(readable, plan, copies=copies), plan)
        rank_zero_info(f"The split of the pictures is kept in '{split_file}'.")
    parts = read_split(split_file, plan)
    known = {name for names in parts.values() for name in names}
    tell_changes(readable, known.difference(unreadable), split_file)
    return {part: [name for name in names if name in classes] for part, names in parts.items()}


def tell_changes(classes: Mapping[str, str], known: set[str], split_file: Path) -> None:
    """Warn about pictures that came or went since the split was made."""
    gone = sorted(known.difference(classes))
    new = [name for name in classes if name not in known]
    if gone:
        rank_zero_warn(f"Of the split in '{split_file}', {some(gone)} are gone.")
    if new:
        rank_zero_warn(
            f"Not used, for they are newer than the split: {some(new)}. To split all pictures "
            f"anew, delete '{split_file}'."
        )

"""Split the training images by a file that every process and every run reads."""

from collections.abc import Collection, Mapping
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from .duplicates import find_copies
from .skipped import summary
from .split_file import SplitPlan, read_split, split_by_class, write_split


def split_train_images(
    classes: Mapping[str, str],
    plan: SplitPlan,
    *,
    root: Path,
    split_file: Path,
    unreadable: Collection[str] = (),
) -> dict[str, list[str]]:
    """The images of each part in the split file, which is written if it does not exist.

    Args:
        classes: The class of each image.
        plan: The shares and the seed.
        root: The folder that names are relative to. Copies of a file stay in one part.
        split_file: It is not changed if it exists; newer images are left out.
        unreadable: The skipped images; a split is made of the others.
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
    warn_of_changes(readable, known.difference(unreadable), split_file)
    return {part: [name for name in names if name in classes] for part, names in parts.items()}


def warn_of_changes(classes: Mapping[str, str], known: set[str], split_file: Path) -> None:
    """Warn of images that were added or removed after the split was made."""
    gone = sorted(known.difference(classes))
    new = [name for name in classes if name not in known]
    if gone:
        rank_zero_warn(f"Of the split in '{split_file}', {summary(gone)} are gone.")
    if new:
        rank_zero_warn(
            f"Not used, because they are newer than the split: {summary(new)}. To split all "
            f"pictures again, delete '{split_file}'."
        )

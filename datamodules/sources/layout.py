"""Find the folder of each part of a dataset."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lit_finetune._errors import nearest

from .image_files import has_image_suffix
from .nested_folders import ordered_as_given, refuse_hidden_parts
from .run_folders import MAX_ENTRIES, is_run_folder
from .skipped import summary
from .split_names import Split, split_from_name, splits_mentioned
from .walk import is_visible

RENAME = "A folder for a part is called train, val or test; a class must be called otherwise."
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Layout:
    """The folder of each split, and the classes."""

    root: Path
    folders: Mapping[Split, Path]
    classes: tuple[str, ...]
    unused: tuple[str, ...] = ()
    """Folders with images that belong to no split."""

    @property
    def label_source(self) -> str:
        """The split or the folder whose classes give the labels, in a message."""
        if "train" in self.folders:
            return "training"
        return repr(str(label_folder(self.folders)[0]))

    def warning(self) -> str | None:
        """A warning of unused folders, and the folder of each split; None if all are used."""
        if not self.unused:
            return None
        return (
            f"In '{self.root}', the folders {summary(self.unused)} are not used, because their "
            f"names are those of no part: {describe_parts(self.root, self.folders)}. {RENAME}"
        )


def find_layout(root: Path, classes: Sequence[str] | None = None) -> Layout:
    """Find out whether a folder has splits, or contains the classes itself.

    Args:
        root: The folder.
        classes: The class folders in the order of their labels, if the user gives them.

    Raises:
        FileNotFoundError: The folder is missing.
        ValueError: It has fewer than two classes, or its layout is ambiguous.
    """
    folders = split_folders(root)
    for folder in dict.fromkeys((root, *folders.values())):
        refuse_broken_links(folder)
    unused = unused_folders(root, folders)
    if unused and "train" not in folders:
        parts = " and ".join(repr(top_folder(root, path)) for path in folders.values())
        raise ValueError(
            f"In '{root}', {describe_parts(root, folders)}, there is no folder to train on, and "
            f"the names of {summary(unused)} are those of no part. If those are the classes to"
            f" train on, move them into a folder 'train'; if {parts} is a class as well, rename it."
            f" {RENAME}"
        )
    first, found = label_folder(folders)
    if len(found) < 2:
        raise ValueError(
            f"'{first}' needs a folder of pictures for each class, two at the least, but holds "
            f"{describe(first, found)}.{_to_predict(first, found)}"
        )
    refuse_splits_among_classes(first, found)
    if classes is not None:
        found = ordered_as_given(found, classes, first)
    elif first == root:
        refuse_hidden_parts(root, folders_within(root, found))
    return Layout(root, folders, tuple(found), tuple(unused))


def folders_within(folder: Path, names: Iterable[str]) -> dict[str, list[str]]:
    """The folders with images in each folder; none if it contains images itself.

    The search stops at the first folder without such folders.
    """
    found: dict[str, list[str]] = {}
    for name in names:
        inner = subfolders(folder / name)
        has_own = any(has_image_suffix(path.name) for path in (folder / name).iterdir())
        found[name] = [] if has_own else [one for one in inner if has_images(folder / name / one)]
        if not found[name]:
            break
    return found


def label_folder(folders: Mapping[Split, Path]) -> tuple[Path, list[str]]:
    """The folder whose classes give the labels, and its classes.

    This is the training folder. Without one, it is a folder that has all classes of the others,
    because a small part may lack some; or else the first.
    """
    classes = {path: subfolders(path) for path in folders.values()}
    first = next(iter(classes))
    if "train" not in folders:
        every = set().union(*classes.values())
        complete = [path for path, names in classes.items() if set(names) == every]
        first = complete[0] if complete else first
    return first, classes[first]


def refuse_broken_links(folder: Path) -> None:
    """Refuse broken links: a class or a part would be missing.

    Raises:
        FileNotFoundError: Names them.
    """
    links = [path for path in folder.iterdir() if path.is_symlink() and not path.exists()]
    broken = sorted(path.name for path in links if is_visible(path.name) and not path.suffix)
    if broken:
        raise FileNotFoundError(
            f"In '{folder}', {summary(broken)} are links to nowhere. Repair or remove them."
        )


def unused_folders(root: Path, folders: Mapping[Split, Path]) -> list[str]:
    """The folders with images that belong to no split."""
    if root in folders.values():
        return []
    used = {top_folder(root, path) for path in folders.values()}
    others = [name for name in subfolders(root) if name not in used]
    return [name for name in others if has_images(root / name)]


def top_folder(root: Path, folder: Path) -> str:
    """The name of the folder in `root` that contains a folder."""
    return folder.relative_to(root).parts[0]


def describe_parts(root: Path, folders: Mapping[Split, Path]) -> str:
    """The folder of each part, in a message."""
    return ", ".join(
        f"'{path.relative_to(root).as_posix()}' was taken for {split}"
        for split, path in folders.items()
    )


def split_folders(root: Path) -> dict[Split, Path]:
    """The folder of each split that has one; without any, the root is for training."""
    check_folder(root)
    names = subfolders(root)
    named = {name: split for name in names if (split := split_from_name(name)) is not None}
    if set(named.values()) == {"train"} and len(named) == 1 and len(names) > 1:
        train = next(iter(named))
        if not subfolders(root / train) and has_images(root / train):
            return {"train": root}  # a part to train on has classes, so this is a class
    found: dict[Split, Path] = {}
    for split in SPLITS:
        matches = [name for name, other in named.items() if other == split]
        if len(matches) > 1:
            raise ValueError(
                f"'{root}' has more than one folder for {split}: {', '.join(matches)}. {RENAME}"
            )
        if matches:
            found[split] = unwrap(root / matches[0], split)
    return found or {"train": root}


def unwrap(folder: Path, split: Split) -> Path:
    """A split's folder, or the folder of the same split in it if it contains nothing else.

    Unpacked archives are often like this: `seg_train/seg_train/<class>/…`.
    """
    inside = subfolders(folder)
    is_wrapper = len(inside) == 1 and split_from_name(inside[0]) == split
    return folder / inside[0] if is_wrapper else folder


def refuse_splits_among_classes(folder: Path, classes: Iterable[str]) -> None:
    """Refuse class folders that look like parts of the data, or that contain parts.

    Raises:
        ValueError: Names the folders.
    """
    mentioned = {name: splits for name in classes if (splits := splits_mentioned(name))}
    if len(set().union(*mentioned.values())) > 1:
        raise ValueError(
            f"The folders {summary(list(mentioned))} in '{folder}' would be classes, but their "
            f"names are those of parts of the data. {RENAME}"
        )
    within = {
        f"{name}/{inner}": split
        for name in classes
        for inner in subfolders(folder / name)
        if (split := split_from_name(inner))
    }
    if len(set(within.values())) > 1 or not {"train"}.issuperset(within.values()):
        raise ValueError(
            f"The class folders in '{folder}' are divided into parts: {summary(list(within))}, "
            "which would all be one. Put the parts above the classes: "
            f"{', '.join(sorted({split + '/<class>' for split in within.values()}))}. {RENAME}"
        )


def has_images(folder: Path) -> bool:
    """Whether there are images among the first files in a folder, by their names."""
    count = 0
    for _, folders, files in os.walk(folder):
        folders[:] = filter(is_visible, folders)
        if any(is_visible(file) and has_image_suffix(file) for file in files):
            return True
        count += len(files) + len(folders)
        if count > MAX_ENTRIES:
            break
    return False


def check_folder(folder: Path) -> None:
    """Refuse a folder that does not exist, and name the nearest names."""
    if folder.is_dir():
        return
    parent = folder.parent
    hint = nearest(folder.name, subfolders(parent)) if parent.is_dir() else ""
    raise FileNotFoundError(f"There is no folder '{folder.absolute()}'.{hint}")


def subfolders(folder: Path) -> list[str]:
    """The sorted names of the visible folders in a folder that may hold images.

    Links to its parents are left out, and the folders of runs.
    """
    return sorted(
        path.name
        for path in folder.iterdir()
        if is_visible(path.name)
        and path.is_dir()
        and not is_link_to_parent(path)
        and not is_run_folder(path)
    )


def is_link_to_parent(path: Path) -> bool:
    """Whether a path is a link to a folder that contains it."""
    return path.is_symlink() and any(path.samefile(parent) for parent in path.absolute().parents)


def _to_predict(folder: Path, classes: list[str]) -> str:
    """Advice on images that are in no class, if there are any."""
    if classes or not any(has_image_suffix(path.name) for path in folder.iterdir()):
        return ""
    return (
        " Pictures without a class can only be predicted: give the folder as `predict_dir`, on the"
        f" command line `--data.predict_dir={folder}`, and leave `data_dir` out."
    )


def describe(folder: Path, classes: list[str]) -> str:
    """The content of a folder without class folders, in a few words."""
    if classes:
        inside = len(subfolders(folder / classes[0]))
        hint = f"; did you mean '{folder / classes[0]}', which holds {inside}?" if inside else ""
        return f"only {classes[0]!r}{hint}"
    pictures = sum(has_image_suffix(path.name) for path in folder.iterdir())
    return f"no folder, and {pictures} picture(s)"

"""Which folders of a data set hold which part of it."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lit_finetune._errors import nearest

from .image_files import is_named_picture
from .nested_folders import ordered_as_given, refuse_hidden_parts
from .skipped import some
from .split_names import Split, split_of, splits_mentioned
from .walk import is_visible

RENAME = "A folder for a part is called train, val or test; a class must be called otherwise."
SPLITS: tuple[Split, ...] = ("train", "val", "test")
MOST_LOOKED_AT = 1000


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the pictures of each split lie, and which classes they have."""

    root: Path
    folders: Mapping[Split, Path]
    classes: tuple[str, ...]
    unused: tuple[str, ...] = ()
    """Folders of pictures beside those of the splits."""

    @property
    def labelled_by(self) -> str:
        """What has the classes that give the labels, in a message."""
        if "train" in self.folders:
            return "training"
        return repr(str(labelling_folder(self.folders)[0]))

    def warning(self) -> str | None:
        """What is not used, and what was taken for what; None if all is used."""
        if not self.unused:
            return None
        return (
            f"In '{self.root}', the folders {some(self.unused)} are not used, for they are named "
            f"after no part: {taken_for(self.root, self.folders)}. {RENAME}"
        )


def find_layout(root: Path, classes: Sequence[str] | None = None) -> Layout:
    """See whether a folder is divided into splits, or holds the classes itself.

    Args:
        root: The folder.
        classes: What a user says that the class folders are, in the order of their labels.

    Raises:
        FileNotFoundError: the folder is missing.
        ValueError: it does not hold two classes or more, or is not surely divided in one way.
    """
    folders = split_folders(root)
    for folder in dict.fromkeys((root, *folders.values())):
        refuse_lost_links(folder)
    unused = unused_folders(root, folders)
    if unused and "train" not in folders:
        parts = " and ".join(repr(first_below(root, path)) for path in folders.values())
        raise ValueError(
            f"In '{root}', {taken_for(root, folders)}, there is no folder to train on, and "
            f"{some(unused)} are named after no part. If those are the classes to train on, move "
            f"them into a folder 'train'; if {parts} is a class as well, rename it. {RENAME}"
        )
    first, found = labelling_folder(folders)
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
    """The folders of pictures within each; none where there are pictures beside them.

    It ends with the first that has none.
    """
    found: dict[str, list[str]] = {}
    for name in names:
        inner = subfolders(folder / name)
        beside = any(is_named_picture(path.name) for path in (folder / name).iterdir())
        found[name] = (
            [] if beside else [one for one in inner if holds_pictures(folder / name / one)]
        )
        if not found[name]:
            break
    return found


def labelling_folder(folders: Mapping[Split, Path]) -> tuple[Path, list[str]]:
    """The folder whose classes give the labels, and these.

    It is that of training. Where there is none, it is the one that has all classes of the others:
    a small part may lack some. If none has, it is the first.
    """
    there = {path: subfolders(path) for path in folders.values()}
    first = next(iter(there))
    if "train" not in folders:
        has_all = [path for path in there if set().union(*there.values()) == set(there[path])]
        first = has_all[0] if has_all else first
    return first, there[first]


def refuse_lost_links(folder: Path) -> None:
    """Refuse links to folders that are not there: a class or a part would be missing.

    Raises:
        FileNotFoundError: Names them.
    """
    links = [path for path in folder.iterdir() if path.is_symlink() and not path.exists()]
    lost = sorted(path.name for path in links if is_visible(path.name) and not path.suffix)
    if lost:
        raise FileNotFoundError(
            f"In '{folder}', {some(lost)} are links to nowhere. Repair or remove them."
        )


def unused_folders(root: Path, folders: Mapping[Split, Path]) -> list[str]:
    """The folders with pictures beside those of the splits."""
    if root in folders.values():
        return []
    taken = {first_below(root, path) for path in folders.values()}
    beside = [name for name in subfolders(root) if name not in taken]
    return [name for name in beside if holds_pictures(root / name)]


def first_below(root: Path, folder: Path) -> str:
    """The name of the folder in `root` that leads to a folder."""
    return folder.relative_to(root).parts[0]


def taken_for(root: Path, folders: Mapping[Split, Path]) -> str:
    """Which folder was taken for which part, in a message."""
    return ", ".join(
        f"'{path.relative_to(root).as_posix()}' was taken for {split}"
        for split, path in folders.items()
    )


def split_folders(root: Path) -> dict[Split, Path]:
    """The folder of each split that has one; without any, all is for training."""
    check_folder(root)
    there = subfolders(root)
    named = {name: split for name in there if (split := split_of(name)) is not None}
    if set(named.values()) == {"train"} and len(named) == 1 and len(there) > 1:
        train = next(iter(named))
        if not subfolders(root / train) and holds_pictures(root / train):
            return {"train": root}  # pictures of no class cannot be a part to train on: a class
    found: dict[Split, Path] = {}
    for split in SPLITS:
        here = [name for name, of in named.items() if of == split]
        if len(here) > 1:
            raise ValueError(
                f"'{root}' has more than one folder for {split}: {', '.join(here)}. {RENAME}"
            )
        if here:
            found[split] = unwrapped(root / here[0], split)
    return found or {"train": root}


def unwrapped(folder: Path, split: Split) -> Path:
    """A split's folder, or the one of that split in it where there is nothing else.

    Archives are often unpacked so: `seg_train/seg_train/<class>/…`.
    """
    inside = subfolders(folder)
    is_wrapper = len(inside) == 1 and split_of(inside[0]) == split
    return folder / inside[0] if is_wrapper else folder


def refuse_splits_among_classes(folder: Path, classes: Iterable[str]) -> None:
    """Refuse class folders that look like parts of the data, or are divided into parts.

    Raises:
        ValueError: Says what would be taken for what.
    """
    mentioned = {name: splits for name in classes if (splits := splits_mentioned(name))}
    if len(set().union(*mentioned.values())) > 1:
        raise ValueError(
            f"The folders {some(list(mentioned))} in '{folder}' would be classes, but their names "
            f"speak of parts of the data. {RENAME}"
        )
    within = {
        f"{name}/{inner}": split
        for name in classes
        for inner in subfolders(folder / name)
        if (split := split_of(inner))
    }
    if len(set(within.values())) > 1 or not {"train"}.issuperset(within.values()):
        raise ValueError(
            f"The class folders in '{folder}' are divided into parts: {some(list(within))}, which "
            "would all be one. Put the parts above the classes: "
            f"{', '.join(sorted({split + '/<class>' for split in within.values()}))}. {RENAME}"
        )


def holds_pictures(folder: Path) -> bool:
    """Whether there are pictures among the first files in a folder, by their names alone."""
    looked_at = 0
    for _, folders, files in os.walk(folder):
        folders[:] = filter(is_visible, folders)
        if any(is_visible(file) and is_named_picture(file) for file in files):
            return True
        looked_at += len(files) + len(folders)
        if looked_at > MOST_LOOKED_AT:
            break
    return False


def check_folder(folder: Path) -> None:
    """Refuse a folder that is not there, and name the nearest ones that are."""
    if folder.is_dir():
        return
    parent = folder.parent
    hint = nearest(folder.name, subfolders(parent)) if parent.is_dir() else ""
    raise FileNotFoundError(f"There is no folder '{folder.absolute()}'.{hint}")


def subfolders(folder: Path) -> list[str]:
    """The names of the folders in a folder, sorted, but hidden ones and links to where it lies."""
    return sorted(
        path.name
        for path in folder.iterdir()
        if is_visible(path.name) and path.is_dir() and not leads_back(path)
    )


def leads_back(path: Path) -> bool:
    """Whether a folder is a link to one that it lies in."""
    return path.is_symlink() and any(path.samefile(parent) for parent in path.absolute().parents)


def _to_predict(folder: Path, classes: list[str]) -> str:
    """What can be done with pictures that are in no class, if there are such."""
    if classes or not any(is_named_picture(path.name) for path in folder.iterdir()):
        return ""
    return (
        " Pictures without a class can only be predicted: give the folder as `predict_dir`, on the"
        f" command line `--data.predict_dir={folder}`, and leave `data_dir` out."
    )


def describe(folder: Path, classes: list[str]) -> str:
    """What is there instead of class folders, in a few words."""
    if classes:
        inside = len(subfolders(folder / classes[0]))
        hint = f"; did you mean '{folder / classes[0]}', which holds {inside}?" if inside else ""
        return f"only {classes[0]!r}{hint}"
    pictures = sum(is_named_picture(path.name) for path in folder.iterdir())
    return f"no folder, and {pictures} picture(s)"

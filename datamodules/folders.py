"""Which pictures a folder holds, by split and by class."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lit_finetune._names import nearest
from lit_finetune.images import IMAGE_SUFFIXES

Split = Literal["train", "val", "test"]

SPLIT_FOLDERS: Mapping[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the pictures of each split lie, and which classes the first of them has."""

    root: Path
    folders: Mapping[Split, Path]
    classes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Listing:
    """The pictures in a folder, each with its class; names are paths below the data folder."""

    classes: Mapping[str, str]
    strays: tuple[str, ...]


def find_layout(root: Path) -> Layout:
    """See whether a folder is divided into splits, or holds the classes itself.

    Raises:
        FileNotFoundError: the folder is missing.
        ValueError: it does not hold two classes or more.
    """
    folders = split_folders(root)
    first = next(iter(folders.values()))
    classes = subfolders(first)
    if len(classes) < 2:
        raise ValueError(
            f"'{first}' needs a folder of pictures for each class, two at the least, but holds "
            f"{describe(first, classes)}."
        )
    return Layout(root, folders, tuple(classes))


def split_folders(root: Path) -> dict[Split, Path]:
    """The folder of each split that has one; without any, all is for training."""
    check_folder(root)
    found: dict[Split, Path] = {}
    for split, names in SPLIT_FOLDERS.items():
        here = [name for name in subfolders(root) if name.lower() in names]
        if len(here) > 1:
            raise ValueError(f"'{root}' has more than one folder for {split}: {', '.join(here)}.")
        if here:
            found[split] = root / here[0]
    return found or {"train": root}


def check_folder(folder: Path) -> None:
    """Refuse a folder that is not there, and name the nearest ones that are."""
    if folder.is_dir():
        return
    parent = folder.parent
    hint = nearest(folder.name, subfolders(parent)) if parent.is_dir() else ""
    raise FileNotFoundError(f"There is no folder '{folder.absolute()}'.{hint}")


def subfolders(folder: Path) -> list[str]:
    """The names of the folders in a folder, sorted; hidden ones are none of ours."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and is_visible(path.name))


def is_visible(name: str) -> bool:
    """Whether a file or folder was put there by the user, not by a tool for itself."""
    return not name.startswith((".", "__MACOSX"))


def describe(folder: Path, classes: list[str]) -> str:
    """What is there instead of class folders, in a few words."""
    if classes:
        return f"only {classes[0]!r}"
    pictures = sum(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.iterdir())
    return f"no folder, and {pictures} picture(s)"


def list_pictures(folder: Path, *, root: Path) -> tuple[list[str], list[str]]:
    """The pictures below a folder and the other files, but hidden ones, as paths below `root`."""
    pictures: list[str] = []
    strays: list[str] = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = filter(is_visible, folders)
        for file in filter(is_visible, files):
            path = Path(place, file)
            kind = pictures if path.suffix.lower() in IMAGE_SUFFIXES else strays
            kind.append(path.relative_to(root).as_posix())
    return sorted(pictures), sorted(strays)


def list_classes(folder: Path, *, root: Path) -> Listing:
    """The pictures in each class folder, with the name of the class."""
    pictures, strays = list_pictures(folder, root=root)
    depth = len(folder.relative_to(root).parts)
    classes: dict[str, str] = {}
    for picture in pictures:
        parts = picture.split("/")
        if len(parts) > depth + 1:
            classes[picture] = parts[depth]
        else:
            strays.append(picture)
    return Listing(classes, tuple(strays))


def check_classes(found: Iterable[str], *, known: Iterable[str], folder: Path) -> list[str]:
    """Compare the classes of a split with those of training, by name.

    Returns:
        The classes that training has and the split lacks.

    Raises:
        ValueError: the split has a class that training lacks.
    """
    found, known = set(found), sorted(known)
    unknown = sorted(found.difference(known))
    if unknown:
        hint = nearest(unknown[0], known)
        raise ValueError(
            f"'{folder}' has the class(es) {', '.join(map(repr, unknown))}, which training does "
            f"not have.{hint} Training has: {', '.join(known)}."
        )
    return [name for name in known if name not in found]

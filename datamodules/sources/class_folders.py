"""Which pictures a folder holds, by class."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lit_finetune._errors import nearest, some_of
from lit_finetune.classes.names import listed, normalized

from .layout import subfolders
from .skipped import LeftOut, some
from .walk import Identity, find_files, is_ours, is_visible


@dataclass(frozen=True, slots=True)
class Listing:
    """The pictures in a folder, by paths below the data folder, each real file once."""

    pictures: Mapping[str, Identity]
    classes: Mapping[str, str] = field(default_factory=dict)
    """The class of each picture, where the folder holds class folders."""
    left_out: LeftOut = field(default_factory=LeftOut)


def list_pictures(folder: Path, *, root: Path) -> Listing:
    """The pictures below a folder, whatever their class."""
    found = find_files(folder, root=root)
    left_out = LeftOut(found.problems, found.repeats, sorted(found.strays), found.num_hidden)
    return Listing(found.pictures, left_out=left_out)


def list_classes(folder: Path, *, root: Path) -> Listing:
    """The pictures in each class folder, with the name of the class.

    Raises:
        ValueError: links, or further names of a file, put one file into two classes.
    """
    classes: dict[str, str] = {}
    pictures: dict[str, Identity] = {}
    left_out = left_out_beside(folder, root=root)
    for name in subfolders(folder):
        listing = list_pictures(folder / name, root=root)
        classes |= dict.fromkeys(listing.pictures, name)
        pictures |= listing.pictures
        left_out = left_out.together_with(listing.left_out)
    refuse_shared(classes, pictures, "class")
    return Listing(pictures, classes, left_out)


def left_out_beside(folder: Path, *, root: Path) -> LeftOut:
    """What lies beside the class folders."""
    names = sorted(path.name for path in folder.iterdir())
    visible, classes = list(filter(is_visible, names)), set(subfolders(folder))
    inside = folder.relative_to(root)
    beside = [(inside / name).as_posix() for name in visible if name not in classes]
    folders = [name for name in beside if (root / name).is_dir()]  # links to where they lie
    files = [name for name in beside if name not in folders]
    num_hidden = sum(not is_visible(name) and not is_ours(name) for name in names)
    return LeftOut(repeats=folders, strays=files, num_hidden=num_hidden)


def refuse_shared(owners: Mapping[str, str], pictures: Mapping[str, Identity], what: str) -> None:
    """Refuse a file that has names with two owners.

    Args:
        owners: The class, or the part, of each name.
        pictures: Which file each name leads to.
        what: What an owner is.

    Raises:
        ValueError: Names such files.
    """
    first: dict[Identity, str] = {}
    shared = []
    for name, identity in pictures.items():
        other = first.setdefault(identity, name)
        if identity[1] and owners[other] != owners[name]:
            shared.append(f"{other} = {name}")
    if shared:
        raise ValueError(
            f"Links, or further names of a file, put {some(shared)} into more than one {what}: "
            "leave one name of each."
        )


def check_classes(
    found: Iterable[str], *, known: Iterable[str], folder: Path, source: str
) -> list[str]:
    """Compare the classes of a split with those that give the labels, by name.

    Args:
        found: The split's.
        known: Those that give the labels.
        folder: Where the split lies.
        source: What has the known ones.

    Returns:
        The classes that the split lacks.

    Raises:
        ValueError: The split has a class that gives no label.
    """
    found, known = set(found), sorted(known)
    unknown = sorted(found.difference(known))
    if unknown:
        hint = nearest(unknown[0], known)
        raise ValueError(
            f"'{folder}' has {some_of(list(map(repr, unknown)))}, which {source} does not have."
            f"{hint} There are {listed(known)} in {source}."
        )
    return [name for name in known if name not in found]


def in_spelling_of(classes: Mapping[str, str], known: Iterable[str]) -> dict[str, str]:
    """The class of each picture as a known one is spelled: one name has two forms in Unicode.

    >>> in_spelling_of({"1.png": "e" + chr(0x301)}, [chr(0xE9)])["1.png"] == chr(0xE9)
    True
    """
    names = {normalized(name): name for name in known}
    return {picture: names.get(normalized(name), name) for picture, name in classes.items()}

"""List the images in a folder, by class."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lit_finetune._errors import nearest, some_of
from lit_finetune.classes.names import listed, normalized

from .layout import subfolders
from .run_folders import is_run_folder
from .skipped import UnusedEntries, summary
from .walk import Identity, find_files, is_own_file, is_visible


@dataclass(frozen=True, slots=True)
class Listing:
    """The images in a folder, by paths relative to the data folder, each file once."""

    images: Mapping[str, Identity]
    classes: Mapping[str, str] = field(default_factory=dict)
    """The class of each image, if the folder has class folders."""
    unused: UnusedEntries = field(default_factory=UnusedEntries)


def list_images(folder: Path, *, root: Path) -> Listing:
    """The images in a folder at any depth, without classes."""
    found = find_files(folder, root=root)
    unused = UnusedEntries(
        found.problems,
        found.duplicates,
        sorted(found.other_files),
        num_hidden=found.num_hidden,
    )
    return Listing(found.images, unused=unused)


def list_classes(folder: Path, *, root: Path) -> Listing:
    """The images in each class folder, with the name of the class.

    Raises:
        ValueError: Links put one file into two classes.
    """
    classes: dict[str, str] = {}
    images: dict[str, Identity] = {}
    unused = unused_entries(folder, root=root)
    for name in subfolders(folder):
        listing = list_images(folder / name, root=root)
        classes |= dict.fromkeys(listing.images, name)
        images |= listing.images
        unused = unused.merge(listing.unused)
    refuse_shared(classes, images, "class")
    return Listing(images, classes, unused)


def unused_entries(folder: Path, *, root: Path) -> UnusedEntries:
    """The entries of a folder that are no class folders."""
    names = sorted(path.name for path in folder.iterdir())
    visible, classes = list(filter(is_visible, names)), set(subfolders(folder))
    inside = folder.relative_to(root)
    others = [(inside / name).as_posix() for name in visible if name not in classes]
    folders = [name for name in others if (root / name).is_dir()]
    runs = [name for name in folders if is_run_folder(root / name)]
    links = [name for name in folders if name not in runs]
    files = [name for name in others if name not in folders]
    num_hidden = sum(not is_visible(name) and not is_own_file(name) for name in names)
    return UnusedEntries(
        duplicates=links, other_files=files, run_folders=runs, num_hidden=num_hidden
    )


def refuse_shared(owners: Mapping[str, str], images: Mapping[str, Identity], what: str) -> None:
    """Refuse a file that is in two classes, or in two parts of the data, by links.

    Args:
        owners: The class, or the part, of each name.
        images: The identity of the file of each name.
        what: The kind of owner, in the message.

    Raises:
        ValueError: Names such files.
    """
    first: dict[Identity, str] = {}
    shared = []
    for name, identity in images.items():
        other = first.setdefault(identity, name)
        if identity[1] and owners[other] != owners[name]:
            shared.append(f"{other} = {name}")
    if shared:
        raise ValueError(
            f"Links, or further names of a file, put {summary(shared)} into more than one {what}: "
            "leave one name of each."
        )


def check_classes(
    found: Iterable[str], *, known: Iterable[str], folder: Path, source: str
) -> list[str]:
    """Compare the classes of a split with the labelled classes, by name.

    Args:
        found: The classes of the split.
        known: The labelled classes.
        folder: The folder of the split.
        source: The source of the labelled classes, in the message.

    Returns:
        The classes that the split lacks.

    Raises:
        ValueError: The split has an unknown class.
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


def with_known_spelling(classes: Mapping[str, str], known: Iterable[str]) -> dict[str, str]:
    """The class of each image, spelled as a known class: a name can have two forms in Unicode.

    >>> with_known_spelling({"1.png": "e" + chr(0x301)}, [chr(0xE9)])["1.png"] == chr(0xE9)
    True
    """
    names = {normalized(name): name for name in known}
    return {image: names.get(normalized(name), name) for image, name in classes.items()}

"""The files below a folder: each real file once, whatever links lead to it."""

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .image_files import is_named_picture, is_picture

Identity = tuple[int, int]
"""Device and inode: the same for all names of one file."""

SPECIAL = {
    stat.S_IFIFO: "it is a pipe",
    stat.S_IFSOCK: "it is a socket",
    stat.S_IFCHR: "it is a device",
    stat.S_IFBLK: "it is a device",
}
_OF_SYSTEMS = {
    *("__macosx", "@eadir", "@tmp", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"),
    *(
        "lost+found",
        "$recycle.bin",
        "recycler",
        "system volume information",
        "__pycache__",
        "@__thumb",
    ),
}
"""What macOS, Windows, Linux and network drives put beside anybody's files."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or a link, or a folder that cannot be listed."""

    path: Path
    status: os.stat_result | None = None
    problem: str = ""
    is_link: bool = False


@dataclass(slots=True)
class Found:
    """What lies below a folder, by paths relative to the data folder."""

    pictures: dict[str, Identity] = field(default_factory=dict)
    """The pictures, each real file once."""
    problems: dict[str, str] = field(default_factory=dict)
    """What is called a picture and cannot be one, with what it is."""
    repeats: list[str] = field(default_factory=list)
    """Links, and further names, of files and folders that are there already."""
    strays: list[str] = field(default_factory=list)
    """Files that are no pictures."""
    num_hidden: int = 0
    """How many files and folders are hidden."""


def is_visible(name: str) -> bool:
    """Whether a file or folder was put there by the user, not by a tool for itself."""
    return not name.startswith(".") and name.casefold() not in _OF_SYSTEMS


def is_ours(name: str) -> bool:
    """Whether this package wrote a hidden file or folder."""
    return name.startswith((".lit_finetune_", ".lit-finetune-"))


def find_files(folder: Path, *, root: Path) -> Found:
    """What lies below a folder. Links are followed, but to no folder and no file a second time."""
    found = Found()
    known: set[Identity] = set()
    for entry in walk(folder, found, root):
        name = entry.path.relative_to(root).as_posix()
        if entry.status is None or not stat.S_ISREG(entry.status.st_mode):
            kind = stat.S_IFMT(entry.status.st_mode) if entry.status else 0
            problem = entry.problem or SPECIAL.get(kind, "it is no file")
            if is_named_picture(name) or entry.path.is_dir():
                found.problems[name] = problem
            else:
                found.strays.append(name)
            continue
        identity = entry.status.st_dev, entry.status.st_ino
        has_names = entry.is_link or entry.status.st_nlink > 1
        if not is_picture(entry.path):
            found.strays.append(name)
        elif has_names and identity in known:
            found.repeats.append(name)
        else:
            found.pictures[name] = identity
            known.add(identity)
    found.pictures = dict(sorted(found.pictures.items()))
    return found


def walk(folder: Path, found: Found, root: Path) -> Iterator[Entry]:
    """The files below a folder: first the real ones, then what links lead to."""
    visited: set[Identity] = set()
    folders, links = [folder], list[Path]()
    while folders or links:
        is_link = not folders
        path = folders.pop() if folders else links.pop(0)
        try:
            status = path.stat()
        except OSError as error:
            yield Entry(path, problem=why_unreachable(path, error))
            continue
        if not stat.S_ISDIR(status.st_mode):
            yield Entry(path, status, is_link=is_link)
            continue
        if (status.st_dev, status.st_ino) in visited:
            found.repeats.append(path.relative_to(root).as_posix())
            continue
        visited.add((status.st_dev, status.st_ino))
        try:
            names = sorted(os.listdir(path))
        except OSError as error:
            yield Entry(path, problem=f"it cannot be listed: {error.strerror}")
            continue
        if not names and is_named_picture(path.name):
            yield Entry(path, problem="it is a folder")
        visible = list(filter(is_visible, names))
        found.num_hidden += sum(not is_visible(name) and not is_ours(name) for name in names)
        yield from _sort_out([path / name for name in visible], folders, links)


def _sort_out(paths: Sequence[Path], folders: list[Path], links: list[Path]) -> Iterator[Entry]:
    """Give the files, and put folders and links where they wait."""
    below = []
    for path in paths:
        try:
            status = path.lstat()
        except OSError as error:
            yield Entry(path, problem=why_unreachable(path, error))
            continue
        if stat.S_ISLNK(status.st_mode):
            links.append(path)
        elif stat.S_ISDIR(status.st_mode):
            below.append(path)
        else:
            yield Entry(path, status)
    folders.extend(reversed(below))


def why_unreachable(path: Path, error: OSError) -> str:
    """What is wrong with a name that leads to nothing."""
    try:
        return f"it is a link to {os.readlink(path)!r}: {error.strerror}"
    except OSError:
        return str(error.strerror or error)

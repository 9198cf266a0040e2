"""Find the files in a folder at any depth; each file once, whatever links lead to it."""

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .image_files import has_image_suffix, is_image

Identity = tuple[int, int]
"""Device and inode: the same for all names of one file."""

SPECIAL = {
    stat.S_IFIFO: "it is a pipe",
    stat.S_IFSOCK: "it is a socket",
    stat.S_IFCHR: "it is a device",
    stat.S_IFBLK: "it is a device",
}
_SYSTEM_NAMES = {
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
"""Folders that macOS, Windows, Linux and network drives create."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or a link, or a folder that cannot be listed."""

    path: Path
    status: os.stat_result | None = None
    problem: str = ""
    is_link: bool = False


@dataclass(slots=True)
class FolderContent:
    """The content of a folder at any depth, by paths relative to the data folder."""

    images: dict[str, Identity] = field(default_factory=dict)
    """The images, each file once."""
    problems: dict[str, str] = field(default_factory=dict)
    """Names with the suffix of an image that are no readable files, and what they are."""
    duplicates: list[str] = field(default_factory=list)
    """Links and hard links to files and folders that were already found."""
    other_files: list[str] = field(default_factory=list)
    """Files that are no images."""
    num_hidden: int = 0
    """The number of hidden files and folders."""


def is_visible(name: str) -> bool:
    """Whether a file or folder is not hidden, and not made by a system for itself."""
    return not name.startswith(".") and name.casefold() not in _SYSTEM_NAMES


def is_own_file(name: str) -> bool:
    """Whether a hidden file or folder was written by this package."""
    return name.startswith((".lit_finetune_", ".lit-finetune-"))


def find_files(folder: Path, *, root: Path) -> FolderContent:
    """The content of a folder at any depth; links are followed, but each file is found once."""
    found = FolderContent()
    known: set[Identity] = set()
    for entry in walk(folder, found, root):
        name = entry.path.relative_to(root).as_posix()
        if entry.status is None or not stat.S_ISREG(entry.status.st_mode):
            kind = stat.S_IFMT(entry.status.st_mode) if entry.status else 0
            problem = entry.problem or SPECIAL.get(kind, "it is no file")
            if has_image_suffix(name) or entry.path.is_dir():
                found.problems[name] = problem
            else:
                found.other_files.append(name)
            continue
        identity = entry.status.st_dev, entry.status.st_ino
        has_names = entry.is_link or entry.status.st_nlink > 1
        if not is_image(entry.path):
            found.other_files.append(name)
        elif has_names and identity in known:
            found.duplicates.append(name)
        else:
            found.images[name] = identity
            known.add(identity)
    found.images = dict(sorted(found.images.items()))
    return found


def walk(folder: Path, found: FolderContent, root: Path) -> Iterator[Entry]:
    """The files in a folder at any depth: first real files, then those that links lead to."""
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
            found.duplicates.append(path.relative_to(root).as_posix())
            continue
        visited.add((status.st_dev, status.st_ino))
        try:
            names = sorted(os.listdir(path))
        except OSError as error:
            yield Entry(path, problem=f"it cannot be listed: {error.strerror}")
            continue
        if not names and has_image_suffix(path.name):
            yield Entry(path, problem="it is a folder")
        visible = list(filter(is_visible, names))
        found.num_hidden += sum(not is_visible(name) and not is_own_file(name) for name in names)
        yield from _dispatch([path / name for name in visible], folders, links)


def _dispatch(paths: Sequence[Path], folders: list[Path], links: list[Path]) -> Iterator[Entry]:
    """Yield files; append folders and links to the lists of those to visit."""
    inner = []
    for path in paths:
        try:
            status = path.lstat()
        except OSError as error:
            yield Entry(path, problem=why_unreachable(path, error))
            continue
        if stat.S_ISLNK(status.st_mode):
            links.append(path)
        elif stat.S_ISDIR(status.st_mode):
            inner.append(path)
        else:
            yield Entry(path, status)
    folders.extend(reversed(inner))


def why_unreachable(path: Path, error: OSError) -> str:
    """The problem of a path that cannot be reached."""
    try:
        return f"it is a link to {os.readlink(path)!r}: {error.strerror}"
    except OSError:
        return str(error.strerror or error)

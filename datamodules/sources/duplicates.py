"""Files with the same content under different names."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path

from rich.progress import track

from .skipped import some

ENDS = 4096  # bytes at the start and at the end: what differs at all differs there, nearly always
MANY = 2000  # from here on it takes long enough for a progress bar


def find_copies(root: Path, names: Sequence[str]) -> list[list[str]]:
    """The names of files that are the same byte for byte, in groups of two and more.

    Only files of one size are read, and only those with the same ends as a whole.
    """
    groups = grouped([list(names)], lambda name: size_of(root / name))
    groups = grouped(groups, lambda name: digest_of_ends(root / name))
    return grouped(groups, lambda name: digest_of(root / name))


def grouped(groups: Iterable[Sequence[str]], key: Callable[[str], Hashable]) -> list[list[str]]:
    """Each group divided by a key, but for what is alone then or has none."""
    names = [(number, name) for number, group in enumerate(groups) for name in group]
    with ThreadPoolExecutor() as pool:
        keys: Iterable[Hashable] = pool.map(key, [name for _, name in names])
        is_quiet = len(names) < MANY
        keys = track(keys, "Looking for copies", len(names), transient=True, disable=is_quiet)
        found: dict[Hashable, list[str]] = defaultdict(list)
        for (number, name), value in zip(names, keys, strict=True):
            if value is not None:
                found[number, value].append(name)
    return [group for group in found.values() if len(group) > 1]


def size_of(path: Path) -> int | None:
    """How long a file is; None if it is empty, or gone."""
    try:
        return path.stat().st_size or None
    except OSError:
        return None


def digest_of_ends(path: Path) -> bytes | None:
    """A digest of the first and last bytes of a file; None if it cannot be read."""
    try:
        with path.open("rb") as file:
            start = file.read(ENDS)
            file.seek(max(0, path.stat().st_size - ENDS))
            return blake2b(start + file.read(ENDS), digest_size=16).digest()
    except OSError:
        return None


def digest_of(path: Path) -> bytes | None:
    """A digest of a file; None if it cannot be read."""
    digest = blake2b(digest_size=16)
    try:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except OSError:
        return None
    return digest.digest()


def copies_warning(
    copies: Iterable[Sequence[str]], *, parts: Mapping[str, str], classes: Mapping[str, str]
) -> str | None:
    """Which copies are in two parts of the data or in two classes; None if there are none.

    Args:
        copies: Groups of names of the same content.
        parts: The part of each name.
        classes: The class of each name.

    >>> print(copies_warning([["a/1", "b/1"]], parts={}, classes={"a/1": "a", "b/1": "b"}))
    Copies of one file have two labels: 1 ('a/1 = b/1'). Remove those that are wrong.
    """
    told = []
    copies = list(copies)
    across = [group for group in copies if len({parts[n] for n in group if n in parts}) > 1]
    if across:
        told.append(
            f"Copies of one file are in two parts of the data: {some(map(' = '.join, across))}. "
            "What is measured on them says nothing: remove them from one."
        )
    labels = [group for group in copies if len({classes[n] for n in group if n in classes}) > 1]
    if labels:
        told.append(
            f"Copies of one file have two labels: {some(map(' = '.join, labels))}. "
            "Remove those that are wrong."
        )
    return " ".join(told) or None

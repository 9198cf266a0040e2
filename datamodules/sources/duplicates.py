"""Find files with the same content under different names."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path

from rich.progress import track

from .skipped import summary

END_BYTES = (
    4096  # bytes at the start and at the end: what differs at all differs there, nearly always
)
PROGRESS_BAR_COUNT = 2000  # fewer files take too little time for a progress bar


def find_copies(root: Path, names: Sequence[str]) -> list[list[str]]:
    """Groups of names of files that are equal byte for byte.

    Only files of equal size are read, and only those with equal ends completely.
    """
    groups = group_by([list(names)], lambda name: file_size(root / name))
    groups = group_by(groups, lambda name: digest_ends(root / name))
    return group_by(groups, lambda name: digest_file(root / name))


def group_by(groups: Iterable[Sequence[str]], key: Callable[[str], Hashable]) -> list[list[str]]:
    """Divide each group by a key; leave out groups of one file, and files whose key is None."""
    names = [(number, name) for number, group in enumerate(groups) for name in group]
    with ThreadPoolExecutor() as pool:
        keys: Iterable[Hashable] = pool.map(key, [name for _, name in names])
        is_quiet = len(names) < PROGRESS_BAR_COUNT
        keys = track(keys, "Looking for copies", len(names), transient=True, disable=is_quiet)
        found: dict[Hashable, list[str]] = defaultdict(list)
        for (number, name), value in zip(names, keys, strict=True):
            if value is not None:
                found[number, value].append(name)
    return [group for group in found.values() if len(group) > 1]


def file_size(path: Path) -> int | None:
    """The size of a file; None if it is empty or missing."""
    try:
        return path.stat().st_size or None
    except OSError:
        return None


def digest_ends(path: Path) -> bytes | None:
    """A digest of the first and last bytes of a file; None if it is unreadable."""
    try:
        with path.open("rb") as file:
            start = file.read(END_BYTES)
            file.seek(max(0, path.stat().st_size - END_BYTES))
            return blake2b(start + file.read(END_BYTES), digest_size=16).digest()
    except OSError:
        return None


def digest_file(path: Path) -> bytes | None:
    """A digest of a file; None if it is unreadable."""
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
    """A warning of copies in two parts of the data or in two classes; None if there are none.

    Args:
        copies: Groups of names of files with the same content.
        parts: The part of each name.
        classes: The class of each name.

    >>> print(copies_warning([["a/1", "b/1"]], parts={}, classes={"a/1": "a", "b/1": "b"}))
    Copies of one file have two labels: 1 ('a/1 = b/1'). Remove those that are wrong.
    """
    messages = []
    copies = list(copies)
    across = [group for group in copies if len({parts[n] for n in group if n in parts}) > 1]
    if across:
        messages.append(
            f"Copies of one file are in two parts of the data: {summary(map(' = '.join, across))}. "
            "Metrics on them mean nothing: remove them from one."
        )
    labels = [group for group in copies if len({classes[n] for n in group if n in classes}) > 1]
    if labels:
        messages.append(
            f"Copies of one file have two labels: {summary(map(' = '.join, labels))}. "
            "Remove those that are wrong."
        )
    return " ".join(messages) or None

"""Find unreadable images before a run."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import UnidentifiedImageError
from rich.progress import track

from lit_finetune.files.json import read_json
from lit_finetune.images.bit_depth import declared_bits
from lit_finetune.images.read import load_image, open_image

from .portable_names import from_text, to_text
from .split_file import write_json
from .truncated import is_complete

RECORD = ".lit_finetune_audit.json"
PROGRESS_BAR_COUNT = 1000  # fewer images take too little time for a progress bar


def find_damaged(root: Path, names: Sequence[str]) -> dict[str, str]:
    """The files that are no images, or incomplete, with their problems.

    The start and the end of each file are read; an image is decoded only if these do not suffice.
    """
    return problems(root, names, check_image)


def find_unreadable(root: Path, names: Sequence[str]) -> tuple[dict[str, str], bool]:
    """The images that cannot be decoded, with their problems.

    The result is recorded in `root`; an image is decoded again only if it has changed.

    Returns:
        The problems by name, and whether they could be recorded.
    """
    known = read_record(root / RECORD)
    stamps = {name: stamp_or_empty(root / name) for name in names}
    new = [name for name in names if known.get(name, {}).get("stamp", []) != stamps[name]]
    found = problems(root, new, load_image)
    known |= {name: {"stamp": stamps[name], "problem": found.get(name, "")} for name in new}
    is_recorded = not new or write_record(root / RECORD, known)
    return {name: known[name]["problem"] for name in names if known[name]["problem"]}, is_recorded


def problems(root: Path, names: Sequence[str], read: Callable[[Path], object]) -> dict[str, str]:
    """The problem of each image whose reading fails."""

    def problem(name: str) -> str:
        try:
            read(root / name)
        except Exception as error:  # on damaged files Pillow raises almost any error
            return explain(error.__cause__ or error)
        return ""

    with ThreadPoolExecutor() as pool:
        found: Iterable[str] = pool.map(problem, names)
        if len(names) >= PROGRESS_BAR_COUNT:
            found = track(found, "Checking the pictures", len(names), transient=True)
        return {name: text for name, text in zip(names, found, strict=True) if text}


def explain(error: BaseException) -> str:
    """The problem of a file, without its name."""
    if isinstance(error, UnidentifiedImageError):
        return "it is empty, or in no format that Pillow reads"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def check_image(path: Path) -> None:
    """Check that an image can be read, from its start and its end if these suffice.

    Raises:
        Exception: It is unreadable.
    """
    with path.open("rb") as file, open_image(file) as image:
        is_plain = declared_bits(image) == 8 and image.mode != "LAB"
        is_certain = is_plain and is_complete(file, image)
    if not is_certain:
        load_image(path)


def stamp(path: Path) -> list[int]:
    """Two numbers that change when a file changes: its size and its modification time."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def stamp_or_empty(path: Path) -> list[int]:
    """The stamp of a file; empty if it does not exist."""
    try:
        return stamp(path)
    except OSError:
        return []


def read_record(path: Path) -> dict[str, Any]:
    """The record of earlier runs; empty without a readable one."""
    try:
        stored = read_json(path)
        return {from_text(name): each for name, each in stored.items() if _is_entry(each)}
    except (OSError, ValueError, AttributeError):
        return {}


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("stamp"), list)
        and isinstance(entry.get("problem"), str)
    )


def write_record(path: Path, record: Mapping[str, Any]) -> bool:
    """Write the record; whether the folder is writable."""
    try:
        write_json(path, {to_text(name): entry for name, entry in record.items()})
    except OSError:
        return False
    return True

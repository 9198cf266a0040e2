"""Finding the pictures that cannot be read, before a run stumbles over them."""

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
from .truncated import is_surely_whole

RECORD = ".lit_finetune_audit.json"
MANY = 1000  # from here on it takes long enough for a progress bar


def unopenable(root: Path, names: Sequence[str]) -> dict[str, str]:
    """The files that are no pictures, or not whole ones, with what is wrong.

    A look at the start and the end of each; what they leave in doubt is decoded.
    """
    return problems(root, names, look_at)


def unreadable(root: Path, names: Sequence[str]) -> tuple[dict[str, str], bool]:
    """The pictures that cannot be read to their end, with what is wrong.

    What was found is kept in `root`, and a picture is read again only when it has changed.

    Returns:
        The problems by name, and whether they could be kept.
    """
    known = read_record(root / RECORD)
    stamps = {name: stamp_if_there(root / name) for name in names}
    new = [name for name in names if known.get(name, {}).get("stamp", []) != stamps[name]]
    found = problems(root, new, load_image)
    known |= {name: {"stamp": stamps[name], "problem": found.get(name, "")} for name in new}
    kept = not new or write_record(root / RECORD, known)
    return {name: known[name]["problem"] for name in names if known[name]["problem"]}, kept


def problems(root: Path, names: Sequence[str], read: Callable[[Path], object]) -> dict[str, str]:
    """What goes wrong with which picture when it is read."""

    def problem(name: str) -> str:
        try:
            read(root / name)
        except Exception as error:  # a broken file ends in almost any kind of error inside Pillow
            return explained(error.__cause__ or error)
        return ""

    with ThreadPoolExecutor() as pool:
        found: Iterable[str] = pool.map(problem, names)
        if len(names) >= MANY:
            found = track(found, "Checking the pictures", len(names), transient=True)
        return {name: text for name, text in zip(names, found, strict=True) if text}


def explained(error: BaseException) -> str:
    """What is wrong with a file, without its name."""
    if isinstance(error, UnidentifiedImageError):
        return "it is empty, or in no format that Pillow reads"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def look_at(path: Path) -> None:
    """See that a picture can be read, at its start and its end if these tell.

    Raises:
        Exception: It cannot be read.
    """
    with path.open("rb") as file, open_image(file) as image:
        is_plain = declared_bits(image) == 8 and image.mode != "LAB"
        is_sure = is_plain and is_surely_whole(file, image)
    if not is_sure:
        load_image(path)


def stamp(path: Path) -> list[int]:
    """What changes when a file changes."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def stamp_if_there(path: Path) -> list[int]:
    """The same, or nothing for a file that is gone."""
    try:
        return stamp(path)
    except OSError:
        return []


def read_record(path: Path) -> dict[str, Any]:
    """What earlier runs found; nothing, if there is no record that can be read."""
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
    """Keep what was found, where the folder can be written to."""
    try:
        write_json(path, {to_text(name): entry for name, entry in record.items()})
    except OSError:
        return False
    return True

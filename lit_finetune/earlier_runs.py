"""The checkpoints of earlier runs, found by the folder that the next one would write to."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lit_finetune.sharded_checkpoint import plain_part

LAST, FOLDER, SUFFIX = "last", "checkpoints", ".ckpt"


def folders_of_runs(place: Path) -> list[Path]:
    """Where the runs of one logger keep checkpoints: `<logger>/<version>/checkpoints`.

    Args:
        place: Where the next run would; a folder of another form stands for itself.
    """
    if place.name != FOLDER:
        return [place]
    return sorted({place, *place.parent.parent.glob(f"*/{FOLDER}")})


def last_checkpoint(places: Iterable[Path]) -> Path:
    """The newest `last.ckpt` of runs that write, or would write, to these places.

    Raises:
        FileNotFoundError: There is none.
    """
    places = list(places)
    found = [
        path
        for place in places
        for folder in folders_of_runs(place)
        for path in folder.glob(f"{LAST}*{SUFFIX}")
    ]
    if not found:
        raise _not_found(LAST, places)
    return max(found, key=_written_at)


def best_checkpoint(places: Iterable[Path]) -> Path:
    """The best checkpoint of the newest run that has kept one.

    Raises:
        FileNotFoundError: There is none.
    """
    places = list(places)
    found = [
        path
        for place in places
        for folder in folders_of_runs(place)
        for path in folder.glob(f"*{SUFFIX}")
        if not path.name.startswith(LAST)
    ]
    if not found:
        raise _not_found("best", places)
    newest = max(found, key=_written_at)
    # Of several it knows which is best; of its path no more is believed than the name.
    named = newest.with_name(Path(_best_in(plain_part(newest, skip_data=True)) or newest).name)
    return named if named in found else newest


def _best_in(checkpoint: dict[str, Any]) -> str:
    """The path of the best checkpoint, as the callback that keeps it has written it down."""
    states = checkpoint.get("callbacks", {}).values()
    paths = [s.get("best_model_path") for s in states if isinstance(s, dict) and s.get("monitor")]
    return next((path for path in paths if isinstance(path, str) and path), "")


def _written_at(path: Path) -> int:
    return path.stat().st_mtime_ns


def _not_found(which: str, places: Iterable[Path]) -> FileNotFoundError:
    where = ", ".join(f"'{place}'" for place in dict.fromkeys(places))
    return FileNotFoundError(
        f"`ckpt_path` is '{which}', but no earlier run has left such a checkpoint in {where} or"
        " beside it. Give the path of a checkpoint, or leave `ckpt_path` out to start anew."
    )

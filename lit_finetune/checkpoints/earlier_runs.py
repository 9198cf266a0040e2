"""The checkpoints of earlier runs, found by the folder that the next one would write to."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from lit_finetune._errors import some_of
from lit_finetune.checkpoints.removal import is_local
from lit_finetune.checkpoints.sharded import plain_part

LAST, FOLDER, SUFFIX = "last", "checkpoints", ".ckpt"


def checkpoint_places(trainer: Any) -> list[Path]:
    """Where a Trainer's callbacks keep checkpoints, or will."""
    find = "_ModelCheckpoint__resolve_ckpt_dir"
    kept = [each for each in trainer.checkpoint_callbacks if hasattr(each, find)]
    places = [str(getattr(each, find)(trainer)) for each in kept]
    return [Path(place).absolute() for place in dict.fromkeys(places) if is_local(place)]


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
    return _newest(LAST, _checkpoints(places, is_last=True), places)


def best_checkpoint(places: Iterable[Path]) -> Path:
    """The best checkpoint of the newest run that has kept one.

    Raises:
        FileNotFoundError: There is none.
    """
    found = _checkpoints(places, is_last=False)
    newest = _newest("best", found, places)
    # Of several it knows which is best; of its path no more is believed than the name.
    named = newest.with_name(Path(_best_in(plain_part(newest, skip_data=True)) or newest).name)
    return named if named in found else newest


def refuse_missing_last(trainer: Any, module: Any) -> None:
    """Let a Trainer refuse `ckpt_path="last"` where there is none, as long as it runs this module.

    Lightning warns of it, and begins anew or judges the weights at hand.
    """
    connector = trainer._checkpoint_connector
    parse = connector._parse_ckpt_path
    if isinstance(parse, partial):  # for a module of before
        parse = parse.args[0]
    connector._parse_ckpt_path = partial(_parse_or_refuse, parse, trainer, module)


def _parse_or_refuse(
    parse: Callable[..., Any],
    trainer: Any,
    module: Any,
    state_fn: Any,
    ckpt_path: Any,
    **options: Any,
) -> Any:
    found = parse(state_fn, ckpt_path, **options)
    if found is None and ckpt_path == LAST and trainer.lightning_module is module:
        raise _not_found(LAST, checkpoint_places(trainer))
    return found


def _checkpoints(places: Iterable[Path], *, is_last: bool) -> list[Path]:
    """Those called `last`, or all others."""
    return [
        path
        for place in places
        for folder in folders_of_runs(place)
        for path in folder.glob(f"*{SUFFIX}")
        if path.name.startswith(LAST) == is_last
    ]


def _newest(which: str, found: list[Path], places: Iterable[Path]) -> Path:
    if not found:
        raise _not_found(which, places)
    return max(found, key=_written_at)


def _best_in(checkpoint: dict[str, Any]) -> str:
    """The path of the best checkpoint, as the callback that keeps it has written it down."""
    states = checkpoint.get("callbacks", {}).values()
    paths = [s.get("best_model_path") for s in states if isinstance(s, dict) and s.get("monitor")]
    return next((path for path in paths if isinstance(path, str) and path), "")


def _written_at(path: Path) -> int:
    return path.stat().st_mtime_ns


def _not_found(which: str, places: Iterable[Path]) -> FileNotFoundError:
    where = ", ".join(f"'{place}'" for place in dict.fromkeys(places))
    if not where:
        return FileNotFoundError(
            f"`ckpt_path` is '{which}', but this Trainer keeps no checkpoints beside which an"
            " earlier one could be found. Give the path of a checkpoint."
        )
    kept = {*_checkpoints(places, is_last=True), *_checkpoints(places, is_last=False)}
    names = [f"'{path}'" for path in sorted(kept)]
    there_is = f" There is: {some_of(names, 3)}." if kept else ""
    return FileNotFoundError(
        f"`ckpt_path` is '{which}', but no earlier run has left such a checkpoint in {where} or"
        f" beside it.{there_is} Give the path of a checkpoint, or leave `ckpt_path` out to start"
        " anew."
    )

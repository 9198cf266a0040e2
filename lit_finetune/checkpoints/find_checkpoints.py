"""Find the checkpoints of earlier runs, from the folder that the next run would write to."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lit_finetune._errors import some_of
from lit_finetune.checkpoints.removal import is_local
from lit_finetune.checkpoints.sharded import plain_part

LAST, FOLDER, SUFFIX = "last", "checkpoints", ".ckpt"


def checkpoint_dirpaths(trainer: Any) -> dict[Path, list[Path]]:
    """The folders that a Trainer's callbacks write to, each with those of the logger's runs."""
    method = "_ModelCheckpoint__resolve_ckpt_dir"
    callbacks = [each for each in trainer.checkpoint_callbacks if hasattr(each, method)]
    dirpaths = [str(getattr(each, method)(trainer)) for each in callbacks]
    local = [Path(dirpath).absolute() for dirpath in dict.fromkeys(dirpaths) if is_local(dirpath)]
    versions = _versions_folder(trainer)
    return {dirpath: run_dirpaths(dirpath, versions) for dirpath in local}


def _versions_folder(trainer: Any) -> Path | None:
    """The folder of the first logger's versions, if it has one of its own."""
    logger = trainer.loggers[0] if trainer.loggers else None
    if logger is None or not logger.name:
        return None
    return Path(str(logger.save_dir or trainer.default_root_dir), str(logger.name)).absolute()


def run_dirpaths(dirpath: Path, versions: Path | None) -> list[Path]:
    """The checkpoint folders of all runs of one logger: `<versions>/<version>/checkpoints`.

    Args:
        dirpath: The next run's folder; if it has another form, it is the only one.
        versions: The folder of the logger's versions, if there is one.
    """
    if versions is None or dirpath.name != FOLDER or dirpath.parent.parent != versions:
        return [dirpath]
    return sorted({dirpath, *versions.glob(f"*/{FOLDER}")})


def last_checkpoint(dirpaths: Mapping[Path, list[Path]]) -> Path:
    """The newest `last.ckpt` in the folders of `checkpoint_dirpaths`.

    Raises:
        FileNotFoundError: There is none.
    """
    return _newest(LAST, _checkpoints(dirpaths, is_last=True), dirpaths)


def best_checkpoint(dirpaths: Mapping[Path, list[Path]]) -> Path:
    """The best checkpoint of the newest run that has one.

    Raises:
        FileNotFoundError: There is none.
    """
    found = _checkpoints(dirpaths, is_last=False)
    newest = _newest("best", found, dirpaths)
    # The newest one names the best; only the file name of that path is trusted.
    best = newest.with_name(Path(_best_path(plain_part(newest, skip_data=True)) or newest).name)
    return best if best in found else newest


def refuse_missing_last(trainer: Any, module: Any) -> None:
    """Let a Trainer refuse `ckpt_path="last"` if there is none, as long as it runs this module.

    Lightning only warns, and starts a new run or evaluates the current weights.
    """
    connector = trainer._checkpoint_connector
    parse = connector._parse_ckpt_path
    if isinstance(parse, partial):  # of an earlier module
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
        raise _not_found(LAST, checkpoint_dirpaths(trainer))
    return found


def _checkpoints(dirpaths: Mapping[Path, list[Path]], *, is_last: bool) -> list[Path]:
    """The checkpoints named `last…`, or all others."""
    return [
        path
        for folder in dict.fromkeys(folder for folders in dirpaths.values() for folder in folders)
        for path in folder.glob(f"*{SUFFIX}")
        if path.name.startswith(LAST) == is_last
    ]


def _newest(name: str, found: list[Path], dirpaths: Mapping[Path, list[Path]]) -> Path:
    if not found:
        raise _not_found(name, dirpaths)
    return max(found, key=_modified_at)


def _best_path(checkpoint: dict[str, Any]) -> str:
    """The path of the best checkpoint in the state of the callback that saved it."""
    states = checkpoint.get("callbacks", {}).values()
    paths = [s.get("best_model_path") for s in states if isinstance(s, dict) and s.get("monitor")]
    return next((path for path in paths if isinstance(path, str) and path), "")


def _modified_at(path: Path) -> int:
    return path.stat().st_mtime_ns


def _not_found(name: str, dirpaths: Mapping[Path, list[Path]]) -> FileNotFoundError:
    where = ", ".join(f"'{dirpath}'" for dirpath in dirpaths)
    if not where:
        return FileNotFoundError(
            f"`ckpt_path` is '{name}', but this Trainer keeps no checkpoints, so there is no"
            " folder to search for earlier ones. Give the path of a checkpoint."
        )
    checkpoints = {*_checkpoints(dirpaths, is_last=True), *_checkpoints(dirpaths, is_last=False)}
    names = [f"'{path}'" for path in sorted(checkpoints)]
    is_alone = all(folders == [dirpath] for dirpath, folders in dirpaths.items())
    others = "" if is_alone else " or in those of the logger's other runs"
    there_is = f" There is: {some_of(names, 3)}." if checkpoints else ""
    return FileNotFoundError(
        f"`ckpt_path` is '{name}', but no earlier run has left such a checkpoint in {where}"
        f"{others}.{there_is} Give the path of a checkpoint, or leave `ckpt_path` out to start"
        " a new run."
    )

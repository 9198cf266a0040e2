"""Check a file for `load_from_checkpoint`, against the class that is loaded."""

import ast
import csv
import inspect
import io
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import yaml

from lit_finetune.checkpoints.build_limits import limited_build
from lit_finetune.checkpoints.read import read_checkpoint, refuse_unsafe
from lit_finetune.checkpoints.source import open_checkpoint
from lit_finetune.checkpoints.trusted_hparams import read_hparams, trusted_hparams
from lit_finetune.resuming.restore_errors import migrate


@contextmanager
def trusted_checkpoint(
    cls: type[Any],
    checkpoint: Any,
    *,
    hparams_file: str | Path | None,
    weights_only: bool | None,
    user_kwargs: Mapping[str, Any],
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Check a checkpoint, and yield the arguments for Lightning's `load_from_checkpoint`.

    Args:
        cls: The class that is loaded.
        checkpoint: A path, a URL, a folder of shards, or an open file.
        hparams_file: A file that replaces the checkpoint's hyper-parameters.
        weights_only: The user's argument; False is refused.
        user_kwargs: The user's keyword arguments, which override the checkpoint and are trusted.

    Yields:
        An open file, and keyword arguments.

    Raises:
        ValueError: The file holds more than plain data, or names what only the user may name.
        FileNotFoundError: There is no such file.
    """
    refuse_unsafe(weights_only)
    name = checkpoint if isinstance(checkpoint, str | Path) else None
    with open_checkpoint(checkpoint) as file:
        content = read_checkpoint(file, name=name, skip_data=True)
        migrate(content)  # as Lightning will do, so that the checked content is the loaded one
        hparams_context: AbstractContextManager[Path | None] = nullcontext()
        if hparams_file is not None:
            hparams = content[cls.CHECKPOINT_HYPER_PARAMS_KEY] = read_hparams_file(
                Path(hparams_file)
            )
            hparams_context = _hparams_file(hparams)
        overrides = trusted_overrides(cls, content, user_kwargs=user_kwargs)
        with (
            hparams_context as path,
            limited_build(read_hparams(content), content["state_dict"], overrides=user_kwargs),
        ):
            yield file, {"hparams_file": path, "weights_only": True, **overrides, **user_kwargs}


@contextmanager
def _hparams_file(hparams: Any) -> Iterator[Path]:
    """Write the checked hyper-parameters to a temporary file.

    Lightning reads the file itself, and could read something else: if the file was replaced in
    between, or if it splits lines differently.
    """
    with tempfile.TemporaryDirectory(prefix="lit-finetune-") as folder:
        path = Path(folder) / "hparams.yaml"
        path.write_text(yaml.dump(hparams), encoding="utf-8")
        yield path


def read_hparams_file(path: Path) -> Any:
    """The hyper-parameters in a file.

    Raises:
        ValueError: It is not valid YAML or CSV.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix.lower() != ".csv":
            return yaml.full_load(text)
        return {key: _literal(value) for key, value in list(csv.reader(io.StringIO(text)))[1:]}
    except (ValueError, yaml.YAMLError, RecursionError, MemoryError) as error:
        reason = str(error) if isinstance(error, yaml.YAMLError) else "it cannot be read"
        raise ValueError(f"'{path}' holds no hyper-parameters: {reason}.") from error


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def trusted_overrides(
    cls: type[Any],
    checkpoint: Mapping[str, Any],
    *,
    user_kwargs: Mapping[str, Any],
) -> dict[str, Any]:
    """The arguments that override a checkpoint's hyper-parameters when Lightning builds a class.

    Args:
        cls: The class that is loaded.
        checkpoint: Its hyper-parameters are checked.
        user_kwargs: The user's keyword arguments, which override the checkpoint and are trusted.

    Raises:
        ValueError: The checkpoint is of another class, or names what only the user may name.
    """
    hparams = read_hparams(checkpoint)
    _refuse_other_class(cls, hparams.get("_class_path"))
    parameters = inspect.signature(cls.__init__).parameters
    accepts_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    is_packed = checkpoint.get(cls.CHECKPOINT_HYPER_PARAMS_NAME) in parameters
    accepted = None if accepts_any or is_packed else parameters
    trusted = trusted_hparams(hparams, overrides=user_kwargs, accepted=accepted)
    changed = {key: value for key, value in trusted.items() if value is not hparams.get(key)}
    # Lightning would call it, with any classes that the hyper-parameters name.
    return {**changed, "_instantiator": None} if "_instantiator" in hparams else changed


def _refuse_other_class(cls: type[Any], class_path: Any) -> None:
    """Refuse a checkpoint that names another class than the one that is loaded."""
    if class_path is None:
        return
    names = {each.__name__ for each in cls.__mro__}
    name = str(class_path).rpartition(".")[2]
    if not isinstance(class_path, str) or name not in names:
        raise ValueError(
            f"The checkpoint says that its class is {str(class_path)[:80]!r}, not"
            f" {cls.__name__}, and the file is not trusted to import it: import it yourself,"
            " and call its own `load_from_checkpoint`."
        )

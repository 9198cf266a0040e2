"""What `load_from_checkpoint` may take from a file, held against the class that is loaded."""

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
from lit_finetune.resuming.restore import migrate


@contextmanager
def readable(
    cls: type[Any],
    checkpoint: Any,
    *,
    hparams_file: str | Path | None,
    weights_only: bool | None,
    said: Mapping[str, Any],
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """What Lightning's `load_from_checkpoint` may be called with, once a file has been judged.

    Args:
        cls: The class that is loaded.
        checkpoint: A path, an address, a folder of shards, or an open file.
        hparams_file: A file that counts in the place of the checkpoint's hyper-parameters.
        weights_only: The user's wish; False is refused.
        said: What the user gives by keyword: it counts, and is trusted.

    Yields:
        An open file, and keywords.

    Raises:
        ValueError: The file holds more than plain data, or names what only the user may name.
        FileNotFoundError: There is no such file.
    """
    refuse_unsafe(weights_only)
    name = checkpoint if isinstance(checkpoint, str | Path) else None
    with open_checkpoint(checkpoint) as file:
        content = read_checkpoint(file, name=name, skip_data=True)
        migrate(content)  # as Lightning will: what is judged is what it sees
        judged: AbstractContextManager[Path | None] = nullcontext()
        if hparams_file is not None:
            hparams = content[cls.CHECKPOINT_HYPER_PARAMS_KEY] = read_hparams_file(
                Path(hparams_file)
            )
            judged = _written(hparams)
        overrides = trusted_overrides(cls, content, said=said)
        with (
            judged as path,
            limited_build(read_hparams(content), content["state_dict"], overrides=said),
        ):
            yield file, {"hparams_file": path, "weights_only": True, **overrides, **said}


@contextmanager
def _written(hparams: Any) -> Iterator[Path]:
    """A file of our own with the hyper-parameters that were judged.

    Lightning reads the file itself. It could read another than we did: one that was exchanged in
    between, or lines that it ends elsewhere.
    """
    with tempfile.TemporaryDirectory(prefix="lit-finetune-") as folder:
        path = Path(folder) / "hparams.yaml"
        path.write_text(yaml.dump(hparams), encoding="utf-8")
        yield path


def read_hparams_file(path: Path) -> Any:
    """The hyper-parameters in a file.

    Raises:
        ValueError: It is no YAML, or no CSV.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix.lower() != ".csv":
            return yaml.full_load(text)
        return {key: _literal(value) for key, value in list(csv.reader(io.StringIO(text)))[1:]}
    except (ValueError, yaml.YAMLError, RecursionError, MemoryError) as error:
        what = str(error) if isinstance(error, yaml.YAMLError) else "it cannot be read"
        raise ValueError(f"'{path}' holds no hyper-parameters: {what}.") from error


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def trusted_overrides(
    cls: type[Any],
    checkpoint: Mapping[str, Any],
    *,
    said: Mapping[str, Any],
) -> dict[str, Any]:
    """The arguments that Lightning is to build a class with in the place of a checkpoint's.

    Args:
        cls: The class that is loaded.
        checkpoint: Its hyper-parameters are judged.
        said: What the user gives by keyword: it counts, and is trusted.

    Raises:
        ValueError: The checkpoint is of another class, or names what only the user may name.
    """
    hparams = read_hparams(checkpoint)
    _refuse_other_class(cls, hparams.get("_class_path"))
    parameters = inspect.signature(cls.__init__).parameters
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    is_packed = checkpoint.get(cls.CHECKPOINT_HYPER_PARAMS_NAME) in parameters
    taken = None if takes_any or is_packed else parameters
    trusted = trusted_hparams(hparams, overrides=said, accepted=taken)
    changed = {key: value for key, value in trusted.items() if value is not hparams.get(key)}
    # Lightning would call it, with all classes that the hyper-parameters name in it.
    return {**changed, "_instantiator": None} if "_instantiator" in hparams else changed


def _refuse_other_class(cls: type[Any], class_path: Any) -> None:
    """Refuse a checkpoint that names another class than the one that is loaded."""
    if class_path is None:
        return
    known = {each.__name__ for each in cls.__mro__}
    name = str(class_path).rpartition(".")[2]
    if not isinstance(class_path, str) or name not in known:
        raise ValueError(
            f"The checkpoint says that its class is {str(class_path)[:80]!r}, not"
            f" {cls.__name__}, and a file's word is not enough to import it: import it yourself,"
            " and call its own `load_from_checkpoint`."
        )

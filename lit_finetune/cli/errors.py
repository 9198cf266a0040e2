"""Find the errors that are the user's mistakes, and report them in a few lines."""

import os
import pickle
import re
import sysconfig
import tempfile
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from inspect import getfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lit_finetune.callbacks import LastCheckpoint
from lit_finetune.checkpoints.removal import is_local
from lit_finetune.cli.config_keys import check_keys
from lit_finetune.cli.parser_messages import MAX_LINES, truncate
from lit_finetune.datamodules import ImageFolderDataModule
from lit_finetune.files.terminal_text import printable

_OWN_FOLDERS = tuple(
    f"{folder}{os.sep}"
    for folder in (
        Path(__file__).resolve().parents[1],
        *(
            Path(file).resolve().parent
            for file in (
                getfile(LastCheckpoint),
                getfile(ImageFolderDataModule),
                lightning.__file__,
            )
        ),
    )
)
"""The folders of this package, in a checkout or installed, and of Lightning."""
_LIBRARY_FOLDERS = tuple(
    f"{Path(sysconfig.get_path(name)).resolve()}{os.sep}"
    for name in ("stdlib", "platstdlib", "purelib", "platlib")
)
_USER_ERRORS = (ValueError, OSError, ImportError, RuntimeError, AssertionError, pickle.PickleError)
"""Other errors, such as KeyError and TypeError, are bugs and keep their traceback."""
_DEBUG_HINT = "JSONARGPARSE_DEBUG=true in the environment shows where."


def find_user_error(error: BaseException | None) -> BaseException | None:
    """The error that reports a mistake in the user's input, among an error and its causes.

    An error belongs to the innermost code that is no library's. If Pillow, torch or the system
    raised it while called by us or by Lightning, then the user's input caused it. If the user's own
    code called them, it is a bug there, and keeps its traceback.
    """
    chain = list(_with_causes(error))
    for each in chain:  # our own check says more than a library's error
        is_own_check = isinstance(each, _USER_ERRORS) and _raised_in(each).startswith(_OWN_FOLDERS)
        if isinstance(each, MisconfigurationException) or is_own_check:
            return each
    own = (each for each in chain if isinstance(each, _USER_ERRORS) and _owner(each) == "ours")
    return next(own, None)


def format_error(error: BaseException) -> str:
    """The message of an error in a few lines for a terminal."""
    text = str(error) or type(error).__name__
    if _raised_in(error).startswith(_OWN_FOLDERS):
        return printable(truncate(text, MAX_LINES + 1))
    if isinstance(error, OSError | ValueError):
        return printable(truncate(text))
    return printable(f"{type(error).__name__}: {truncate(text)}\n{_DEBUG_HINT}")


@contextmanager
def with_advice(config: Any) -> Iterator[None]:
    """Add advice to errors of libraries that the user's input caused.

    Args:
        config: The subcommand's configuration.
    """
    try:
        yield
    except (RuntimeError, AssertionError, ValueError) as error:
        if _owner(error) != "ours" or not (advice := _advice(error, config)):
            raise
        raise ValueError(advice) from error


def check_writable(folder: str | Path, option: str) -> None:
    """Refuse a folder that is not writable, before anything is computed.

    Raises:
        ValueError: Names the option that sets another folder.
    """
    if not is_local(str(folder)):
        return
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(
            f"Nothing can be written to '{folder}': {error.strerror}. Give another folder:"
            f" `{option}=…`."
        ) from error


def check_configs(words: Iterable[str]) -> None:
    """Refuse configuration files that are no YAML, or give a key twice.

    Args:
        words: The command's arguments. The parser reports missing files.

    Raises:
        ValueError: Names the file and the line.
    """
    for path in _config_files(list(words)):
        try:
            check_keys(path.read_text(encoding="utf-8"))
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            line = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
            raise ValueError(f"{path}{line}: {error.problem or 'this is no YAML'}.") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is no YAML: {error}") from error


def _config_files(words: list[str]) -> Iterator[Path]:
    for word, following in pairwise([*words, ""]):
        name, _, value = word.partition("=")
        if name in ("--config", "-c"):
            path = Path(value or following).expanduser()
            if path.is_file():
                yield path


def _advice(error: Exception, config: Any) -> str:
    text, checkpoint = str(error), config.get("ckpt_path")
    if "Error(s) in loading state_dict" in text and checkpoint:
        lines = [line.strip() for line in text.splitlines()[1:]]
        reason = truncate(lines[0], 1) if lines else ""
        return (
            f"The checkpoint '{checkpoint}' is of another network than the configuration builds:"
            f" {reason}\nGive the `model` options of its run; or start from its weights alone, with"
            f" `--model.weights={checkpoint}` and no `--ckpt_path`."
        )
    size, built_for = config.get("data.init_args.image_size"), config.get("model.image_size")
    if size is not None and size != built_for and _is_in_a_forward(error):
        reason = truncate(text, 1)
        return (
            f"The network does not take pictures of `data.image_size` {size}: {reason}\nIf it can"
            f" be built for that size, give `--model.image_size={size}` as well; else another"
            " `data.image_size`, or none."
        )
    return ""


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ if error.__suppress_context__ else error.__context__


def _is_in_a_forward(error: BaseException) -> bool:
    frames = traceback.walk_tb(error.__traceback__)
    return any(re.fullmatch("forward|_call_impl", frame.f_code.co_name) for frame, _ in frames)


def _owner(error: BaseException) -> str:
    """The owner of the code that raised an error, or that called the library that raised it."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame in reversed(frames):
        file = _resolve(frame.f_code.co_filename)
        if file.startswith(_OWN_FOLDERS):
            return "ours"
        if not file.startswith((*_LIBRARY_FOLDERS, "<")):
            return "the user's"
    return "ours"


def _raised_in(error: BaseException) -> str:
    """The file in which an error was raised; "" if unknown."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return _resolve(frames[-1].f_code.co_filename) if frames else ""


def _resolve(file: str) -> str:
    return file if file.startswith("<") else str(Path(file).resolve())

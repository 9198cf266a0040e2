"""Which errors of a run tell the user of a mistake, and what is said of them."""

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
from lit_finetune.cli.parser_messages import MOST_LINES, cut
from lit_finetune.datamodules import ImageFolderDataModule
from lit_finetune.files.terminal_text import printable

_OURS = tuple(
    f"{folder}{os.sep}"
    for folder in (
        Path(__file__).resolve().parents[1],
        *(
            Path(place).resolve().parent
            for place in (
                getfile(LastCheckpoint),
                getfile(ImageFolderDataModule),
                lightning.__file__,
            )
        ),
    )
)
"""The folders of this package, in a checkout as installed, and Lightning's."""
_LIBRARIES = tuple(
    f"{Path(sysconfig.get_path(name)).resolve()}{os.sep}"
    for name in ("stdlib", "platstdlib", "purelib", "platlib")
)
_MISTAKES = (ValueError, OSError, ImportError, RuntimeError, AssertionError, pickle.PickleError)
"""Other kinds, such as KeyError and TypeError, are bugs: they keep their traceback."""
_WHERE = "JSONARGPARSE_DEBUG=true in the environment shows where."


def find_refusal(error: BaseException | None) -> BaseException | None:
    """What tells of a mistake of the user's, among an error and its causes.

    An error belongs to whoever's code is the innermost that is no library's: one that Pillow, torch
    or the system raised for us or for Lightning tells of what the user gave us. In the user's own
    code it is the user's to find, and keeps its traceback.
    """
    chain = list(_with_causes(error))
    for each in chain:  # a check of ours says more than what a library has made of it
        is_a_check = isinstance(each, _MISTAKES) and _raised_in(each).startswith(_OURS)
        if isinstance(each, MisconfigurationException) or is_a_check:
            return each
    owned = (each for each in chain if isinstance(each, _MISTAKES) and _owner(each) == "ours")
    return next(owned, None)


def told(error: BaseException) -> str:
    """A refusal in a few lines for a terminal."""
    text = str(error) or type(error).__name__
    if _raised_in(error).startswith(_OURS):
        return printable(cut(text, MOST_LINES + 1))
    if isinstance(error, OSError | ValueError):
        return printable(cut(text))
    return printable(f"{type(error).__name__}: {cut(text)}\n{_WHERE}")


@contextmanager
def explained(config: Any) -> Iterator[None]:
    """Say what to do of errors that other people's code raises for what the user gave.

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
    """Refuse a folder that nothing can be written to, before anything is computed.

    Raises:
        ValueError: Names the option that gives another one.
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
    """Refuse configuration files that are no YAML, or say something twice.

    Args:
        words: Those of the command; files that are not there are the parser's to tell.

    Raises:
        ValueError: Names file and line.
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
        return (
            f"The checkpoint '{checkpoint}' is of another network than the configuration builds:"
            f" {cut(lines[0], 1) if lines else ''}\nGive the `model` options of its run; or start"
            f" from its weights alone, with `--model.weights={checkpoint}` and no `--ckpt_path`."
        )
    size, built_for = config.get("data.init_args.image_size"), config.get("model.image_size")
    if size is not None and size != built_for and _is_in_a_forward(error):
        return (
            f"The network does not take pictures of `data.image_size` {size}: {cut(text, 1)}\nIf it"
            f" can be built for that size, give `--model.image_size={size}` as well; else another"
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
    """Whose code raised an error, or called the library that did."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame in reversed(frames):
        file = _place(frame.f_code.co_filename)
        if file.startswith(_OURS):
            return "ours"
        if not file.startswith((*_LIBRARIES, "<")):
            return "the user's"
    return "ours"


def _raised_in(error: BaseException) -> str:
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return _place(frames[-1].f_code.co_filename) if frames else ""


def _place(file: str) -> str:
    return file if file.startswith("<") else str(Path(file).resolve())

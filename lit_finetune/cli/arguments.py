"""What a command says of a checkpoint and of the model, before the parser reads it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True, slots=True)
class CommandWords:
    """A command, as far as it tells which checkpoint is meant."""

    command: str
    """`fit`, `validate`, …; "" if there is none."""
    ckpt_path: str | None
    model: frozenset[str]
    """The arguments of the model that are said."""


def read_command(args: Sequence[str] | Mapping[str, Any], commands: Sequence[str]) -> CommandWords:
    """What a command's words and its configurations say; what comes later counts.

    >>> read_command(["predict", "--ckpt_path", "a.ckpt", "--model.lr=1"], ["predict"])
    CommandWords(command='predict', ckpt_path='a.ckpt', model=frozenset({'lr'}))

    Args:
        args: The words, or the same as a mapping.
        commands: The names of commands.
    """
    if isinstance(args, Mapping):
        command = str(args.get("subcommand") or next(filter(args.__contains__, commands), ""))
        said: list[tuple[str, Any]] = list(_flat(args.get(command) or {}))
    else:
        command = next((word for word in args if word in commands), "")
        said = list(_options(args))
    options: dict[str, Any] = {}
    for key, value in said:
        if key == "config":
            options |= dict(_flat(_configuration(value, command)))
        elif key == "model":  # a file with the model's part alone
            options |= dict(_flat({"model": _configuration(value, command)}))
        else:
            options[key] = value
    path = options.get("ckpt_path")
    model = {key.split(".")[1] for key in options if key.startswith("model.")}
    return CommandWords(command, path if isinstance(path, str) else None, frozenset(model))


def _options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The options among words: `--key=value`, `--key value`, `-c value`."""
    for word, following in pairwise([*words, ""]):
        if word.startswith("-"):
            key, found, value = word.partition("=")
            name = "config" if key == "-c" else key.lstrip("-")
            yield name, value if found else following


def _configuration(path: Any, command: str) -> Mapping[str, Any]:
    """What a configuration holds; what is wrong with it, the parser will say."""
    try:
        content = yaml.safe_load(Path(str(path)).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    if not isinstance(content, Mapping):
        return {}
    inner = content.get(command)
    return inner if isinstance(inner, Mapping) else content


def _flat(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The entries of a configuration, those of the model by `model.<name>`."""
    for key, value in content.items():
        if key == "model" and isinstance(value, Mapping):
            yield from ((f"model.{name}", inner) for name, inner in value.items())
        else:
            yield str(key), value

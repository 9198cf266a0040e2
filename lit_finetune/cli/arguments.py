"""Find the checkpoint and the model's arguments in a command line, before it is parsed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True, slots=True)
class Command:
    """A command, its checkpoint, and the model's arguments that it gives."""

    name: str
    """`fit`, `validate`, …; "" if there is none."""
    ckpt_path: str | None
    model_keys: frozenset[str]
    """The names of the model's arguments that the command gives."""


def read_command(args: Sequence[str] | Mapping[str, Any], commands: Sequence[str]) -> Command:
    """Read a command's arguments and its configuration files; the last value counts.

    >>> read_command(["predict", "--ckpt_path", "a.ckpt", "--model.lr=1"], ["predict"])
    Command(name='predict', ckpt_path='a.ckpt', model_keys=frozenset({'lr'}))

    Args:
        args: The arguments, as strings or as a mapping.
        commands: The names of commands.
    """
    if isinstance(args, Mapping):
        name = str(args.get("subcommand") or next(filter(args.__contains__, commands), ""))
        pairs: list[tuple[str, Any]] = list(_flatten(args.get(name) or {}))
    else:
        name = next((word for word in args if word in commands), "")
        pairs = list(_options(args))
    options: dict[str, Any] = {}
    for key, value in pairs:
        if key == "config":
            options |= dict(_flatten(_read_config(value, name)))
        elif key == "model":  # a file with the arguments of the model only
            options |= dict(_flatten({"model": _read_config(value, name)}))
        else:
            options[key] = value
    path = options.get("ckpt_path")
    model_keys = {key.split(".")[1] for key in options if key.startswith("model.")}
    return Command(name, path if isinstance(path, str) else None, frozenset(model_keys))


def _options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The options in arguments: `--key=value`, `--key value`, `-c value`."""
    for word, following in pairwise([*words, ""]):
        if word.startswith("-"):
            key, separator, value = word.partition("=")
            name = "config" if key == "-c" else key.lstrip("-")
            yield name, value if separator else following


def _read_config(path: Any, command: str) -> Mapping[str, Any]:
    """The content of a configuration file; nothing if it is invalid, which the parser reports."""
    try:
        content = yaml.safe_load(Path(str(path)).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    if not isinstance(content, Mapping):
        return {}
    inner = content.get(command)
    return inner if isinstance(inner, Mapping) else content


def _flatten(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The entries of a configuration, those of the model as `model.<name>`."""
    for key, value in content.items():
        if key == "model" and isinstance(value, Mapping):
            yield from ((f"model.{name}", inner) for name, inner in value.items())
        else:
            yield str(key), value

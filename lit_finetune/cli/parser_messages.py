"""Shorten the messages of jsonargparse, and add the nearest names."""

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lit_finetune._errors import nearest, some_of

MAX_LINES = 4
_CLASS = re.compile(r"class_path[ =]'([\w.]+)'")
_NOISE = re.compile(
    r"\s*(-\s*)?(Does not validate against any|Subtypes:|Errors:|Given value|"
    r"Expected a <class 'NoneType'>|Expected a path but)"
)
_EXPECTED = re.compile(r"Expected a (?:<class '([\w.]+)'>|typing\.Literal\[(.*?)\])(?=$|[\n.])")
_GIVEN = re.compile(
    r"Got value: (.*)|Given value: (?:NestedArg\(key='[^']*', val=)?(.*?)\)?$", re.M
)
_NO_CLASS = (
    re.compile(r"Expected a dot import path string: (\S+)"),
    re.compile(r"class_path '([\w.]+)':\s*(?:module|No module|Unable to import|Import)"),
)
Bases = Mapping[str, tuple[type, ...]]


def short_message(message: str, *, options: Iterable[str] = (), bases: Bases | None = None) -> str:
    """A parser's message without internal details, with the nearest names.

    >>> short_message("unrecognized arguments: --modl.lr=1", options=["--model.lr", "--data"])
    "unrecognized arguments: --modl.lr=1. Did you mean '--model.lr'?"

    Args:
        message: The message of jsonargparse.
        options: All options of the command.
        bases: The base classes for each option that takes a class.
    """
    key = _search(r'Parser key "([\w.]+)"', message)
    rewrites: list[Callable[[], str]] = [
        partial(_nested_message, message, key),
        partial(_ambiguous_class, message, key),
        partial(_missing_file, message, key),
        partial(_unknown_option, message, list(options)),
        partial(_unknown_argument, message, key, bases or {}),
        partial(_missing_argument, message, key),
        partial(_unknown_class, message, key, bases or {}),
        partial(_wrong_value, message, key),
    ]
    text = next(filter(None, (rewrite() for rewrite in rewrites)), "")
    lines = (line for line in message.splitlines() if not _NOISE.match(line))
    return text or truncate("\n".join(lines))


def truncate(text: str, max_lines: int = MAX_LINES) -> str:
    r"""The first lines of a text, each at most 500 characters long.

    >>> truncate("a\nb\nc", max_lines=2)
    'a\nb …'
    """
    lines = [line[:500] for line in text.strip().splitlines() if line.strip()]
    return "\n".join(lines[:max_lines]) + (" …" if len(lines) > max_lines else "")


def class_names(bases: Iterable[type]) -> list[str]:
    """The names of the public subclasses of these classes."""
    names = {each.__name__ for base in bases for each in _subclasses(base)}
    return sorted(name for name in names if not name.startswith("_"))


def _nested_message(message: str, key: str) -> str:
    """The message of the nested parser of a class, with the full key."""
    nested = re.findall(r'Parser key "([\w.]+)": (\S.*)', message)
    if not nested or not message.startswith(f'Parser key "{key}":\n'):
        return ""
    inner, text = nested[-1]
    return f'Parser key "{key}.{inner}": {text}'


def _ambiguous_class(message: str, key: str) -> str:
    text = _search(r"(Multiple subclasses with name .*)", message)
    return f'Parser key "{key}": {text}' if text else ""


def _missing_file(message: str, key: str) -> str:
    path = Path(_search(r"File does not exist: '?([^'\n]+)", message))
    if not path.name or not path.parent.is_dir():
        return ""
    hint = nearest(path.name, (each.name for each in path.parent.iterdir()))
    return f'Parser key "{key}": File does not exist: {str(path)!r}.{hint}'


def _unknown_option(message: str, options: list[str]) -> str:
    words = _search(r"^unrecognized arguments: (.*)", message)
    unknown = [word.partition("=")[0] for word in words.split() if word.startswith("--")]
    hints = "".join(nearest(name, options) for name in unknown[:3])
    return f"unrecognized arguments: {words}.{hints}" if unknown else ""


def _unknown_argument(message: str, key: str, bases: Bases) -> str:
    name, path = _search(r"Option '([^']+)' is not accepted", message), _class_in(message)
    class_ = _class_at(path)
    if not name or class_ is None:
        return ""
    if class_ in bases.get(key, ()):
        known = ", ".join(class_names(bases[key]))
        return f'Parser key "{key}": no class is given. Give one before its options: {known}.'
    names = _arguments(class_)
    hint = nearest(name, names) or f" It takes: {some_of(names, 20)}."
    return f'Parser key "{key}": {class_.__name__} has no argument {name!r}.{hint}'


def _missing_argument(message: str, key: str) -> str:
    names, path = _search(r"arguments are required: ([\w., ]+)", message), _class_in(message)
    if not names or not path:
        return ""
    first = names.split(",")[0]
    return f'Parser key "{key}": {path} needs {names}: `--{key}.{first}=…`.'


def _unknown_class(message: str, key: str, bases: Bases) -> str:
    name = next((match[1] for pattern in _NO_CLASS if (match := pattern.search(message))), "")
    if not name or key not in bases:
        return ""
    names = class_names(bases[key])
    names += re.findall(r"'([\w-]+)'", " ".join(_findall(r"Literal\[(.*?)\]", message)))
    hint = nearest(name.rpartition(".")[2], names) or f" Known are: {some_of(names, 20)}."
    return (
        f'Parser key "{key}": there is no {name!r}.{hint}\n'
        f"Expected a dot import path string: {name} is none, or its module has no such class."
    )


def _wrong_value(message: str, key: str) -> str:
    expected: list[re.Match[str]] = list(_EXPECTED.finditer(message))
    inner = re.findall(r'Parser key "([\w.]+)"', message)[1:]
    if not expected or "dot import path" in message or ("Problem" in message and not inner):
        return ""
    match = _GIVEN.search(message)
    value = next(filter(None, match.groups()), "").strip("'\"") if match else ""
    literals = [word.strip(" '\"") for each in expected for word in (each[2] or "").split(",")]
    literals = list(dict.fromkeys(filter(None, literals)))
    kinds = [each[1].replace("NoneType", "null") for each in expected if each[1]]
    options = ", ".join(dict.fromkeys([*literals, *kinds]))
    where = ".".join([key, *inner])
    hint = nearest(value, literals)
    return f'Parser key "{where}": {value!r} is not what it takes: {options}.{hint}'


def _class_in(message: str) -> str:
    """The path of the class in a message; the base class if the user gave none."""
    match = _CLASS.search(message)
    return match[1] if match else ""


def _class_at(path: str) -> type | None:
    """An already imported class, by its path."""
    module, _, name = path.rpartition(".")
    value = getattr(sys.modules.get(module), name, None)
    return value if isinstance(value, type) else None


def _arguments(class_: type) -> list[str]:
    """The arguments of a class, and those that it passes on to its base classes."""
    names: dict[str, None] = {}
    for base in class_.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(base).parameters.values()
        variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        names |= dict.fromkeys(p.name for p in parameters if p.kind not in variable)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return list(names)


def _subclasses(base: type) -> Iterator[type]:
    derived: type
    for derived in base.__subclasses__():
        if not inspect.isabstract(derived):
            yield derived
        yield from _subclasses(derived)


def _search(pattern: str, text: str) -> str:
    """The first group of a match; "" without a match."""
    match = re.search(pattern, text)
    return match[1] if match else ""


def _findall(pattern: str, text: str) -> list[Any]:
    return re.findall(pattern, text)

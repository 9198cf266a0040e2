"""What the parser says of a mistake, in few lines, with what there is instead."""

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lit_finetune._errors import nearest, some_of

MOST_LINES = 4
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
    """A parser's message without what only a programmer can use, with the nearest names.

    >>> short_message("unrecognized arguments: --modl.lr=1", options=["--model.lr", "--data"])
    "unrecognized arguments: --modl.lr=1. Did you mean '--model.lr'?"

    Args:
        message: What jsonargparse says.
        options: All that may be given.
        bases: For each option that takes a class, the classes of which it takes subclasses.
    """
    key = _found(r'Parser key "([\w.]+)"', message)
    ways: list[Callable[[], str]] = [
        partial(_told_within, message, key),
        partial(_ambiguous_class, message, key),
        partial(_missing_file, message, key),
        partial(_unknown_option, message, list(options)),
        partial(_unknown_argument, message, key, bases or {}),
        partial(_missing_argument, message, key),
        partial(_unknown_class, message, key, bases or {}),
        partial(_wrong_value, message, key),
    ]
    told = next(filter(None, (way() for way in ways)), "")
    return told or cut("\n".join(line for line in message.splitlines() if not _NOISE.match(line)))


def cut(text: str, most: int = MOST_LINES) -> str:
    r"""The first lines of a text, each no longer than a screen can show.

    >>> cut("a\nb\nc", most=2)
    'a\nb …'
    """
    lines = [line[:500] for line in text.strip().splitlines() if line.strip()]
    return "\n".join(lines[:most]) + (" …" if len(lines) > most else "")


def class_names(bases: Iterable[type]) -> list[str]:
    """The names of the classes that can be given where one of these is expected."""
    found = {each.__name__ for base in bases for each in _subclasses(base)}
    return sorted(name for name in found if not name.startswith("_"))


def _told_within(message: str, key: str) -> str:
    """What the parser of a class has said already, by the names of this one."""
    within = re.findall(r'Parser key "([\w.]+)": (\S.*)', message)
    if not within or not message.startswith(f'Parser key "{key}":\n'):
        return ""
    inner, text = within[-1]
    return f'Parser key "{key}.{inner}": {text}'


def _ambiguous_class(message: str, key: str) -> str:
    text = _found(r"(Multiple subclasses with name .*)", message)
    return f'Parser key "{key}": {text}' if text else ""


def _missing_file(message: str, key: str) -> str:
    path = Path(_found(r"File does not exist: '?([^'\n]+)", message))
    if not path.name or not path.parent.is_dir():
        return ""
    hint = nearest(path.name, (each.name for each in path.parent.iterdir()))
    return f'Parser key "{key}": File does not exist: {str(path)!r}.{hint}'


def _unknown_option(message: str, options: list[str]) -> str:
    words = _found(r"^unrecognized arguments: (.*)", message)
    unknown = [word.partition("=")[0] for word in words.split() if word.startswith("--")]
    hints = "".join(nearest(name, options) for name in unknown[:3])
    return f"unrecognized arguments: {words}.{hints}" if unknown else ""


def _unknown_argument(message: str, key: str, bases: Bases) -> str:
    name, path = _found(r"Option '([^']+)' is not accepted", message), _class_in(message)
    given = _class_at(path)
    if not name or given is None:
        return ""
    if given in bases.get(key, ()):
        known = ", ".join(class_names(bases[key]))
        return f'Parser key "{key}": no class is given. Give one before its options: {known}.'
    names = _arguments(given)
    hint = nearest(name, names) or f" It takes: {some_of(names, 20)}."
    return f'Parser key "{key}": {given.__name__} has no argument {name!r}.{hint}'


def _missing_argument(message: str, key: str) -> str:
    names, path = _found(r"arguments are required: ([\w., ]+)", message), _class_in(message)
    if not names or not path:
        return ""
    first = names.split(",")[0]
    return f'Parser key "{key}": {path} needs {names}: `--{key}.{first}=…`.'


def _unknown_class(message: str, key: str, bases: Bases) -> str:
    name = next((match[1] for pattern in _NO_CLASS if (match := pattern.search(message))), "")
    if not name or key not in bases:
        return ""
    names = class_names(bases[key])
    names += re.findall(r"'([\w-]+)'", " ".join(_found_all(r"Literal\[(.*?)\]", message)))
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
    given = _GIVEN.search(message)
    value = next(filter(None, given.groups()), "").strip("'\"") if given else ""
    literals = [word.strip(" '\"") for each in expected for word in (each[2] or "").split(",")]
    literals = list(dict.fromkeys(filter(None, literals)))
    kinds = [each[1].replace("NoneType", "null") for each in expected if each[1]]
    options = ", ".join(dict.fromkeys([*literals, *kinds]))
    where = ".".join([key, *inner])
    hint = nearest(value, literals)
    return f'Parser key "{where}": {value!r} is not what it takes: {options}.{hint}'


def _class_in(message: str) -> str:
    """The class that a message speaks of; the base itself where none was given."""
    found = _CLASS.search(message)
    return found[1] if found else ""


def _class_at(path: str) -> type | None:
    """A class that is imported already, by its path."""
    module, _, name = path.rpartition(".")
    found = getattr(sys.modules.get(module), name, None)
    return found if isinstance(found, type) else None


def _arguments(of: type) -> list[str]:
    """The arguments of a class, and those that it passes on to the ones it is derived from."""
    names: dict[str, None] = {}
    for base in of.__mro__:
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


def _found(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found[1] if found else ""


def _found_all(pattern: str, text: str) -> list[Any]:
    return re.findall(pattern, text)

"""Error messages that name the available options."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


def nearest(name: str, options: Iterable[str], *, most: int = 3) -> str:
    """The end of an error message: the options that are closest to a name.

    >>> nearest("layer5", ["stem", "layer3", "layer4"])
    " Did you mean 'layer4', 'layer3'?"
    >>> nearest("xyz", ["stem"])
    ''
    """
    close = get_close_matches(name, list(dict.fromkeys(options)), n=most)
    return f" Did you mean {', '.join(map(repr, close))}?" if close else ""


def one_of(value: str, options: Iterable[str], what: str) -> str:
    """Return `value`, or raise an error that names the options.

    >>> one_of("mlp", ["linear", "mlp"], "head")
    'mlp'

    Raises:
        ValueError: `value` is not an option; the message names all, the closest first.
    """
    options = sorted(options)
    if value in options:
        return value
    hint = nearest(value, options, most=1)
    raise ValueError(f"Unknown {what} {value!r}.{hint} Choose one of: {', '.join(options)}.")


def some_of(names: Sequence[str], most: int = 10) -> str:
    """The first names, and the number of the others, in words.

    >>> some_of(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest

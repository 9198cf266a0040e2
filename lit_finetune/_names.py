"""Error messages that name what there is."""

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: str, options: Iterable[str], *, most: int = 3) -> str:
    """The end of an error message: the options that come nearest to a name.

    >>> nearest("layer5", ["stem", "layer3", "layer4"])
    " Did you mean 'layer4', 'layer3'?"
    >>> nearest("xyz", ["stem"])
    ''
    """
    close = get_close_matches(name, list(dict.fromkeys(options)), n=most)
    return f" Did you mean {', '.join(map(repr, close))}?" if close else ""


def one_of(value: str, options: Iterable[str], what: str) -> str:
    """Return `value`, or say which values there are.

    >>> one_of("mlp", ["linear", "mlp"], "head")
    'mlp'

    Raises:
        ValueError: `value` is none of them; the message names all, the nearest first.
    """
    options = sorted(options)
    if value in options:
        return value
    hint = nearest(value, options, most=1)
    raise ValueError(f"Unknown {what} {value!r}.{hint} Choose one of: {', '.join(options)}.")

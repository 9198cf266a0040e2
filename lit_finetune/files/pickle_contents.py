"""What a pickle would import, read without unpickling it."""

import io
import pickletools
import re
from collections.abc import Iterator

_TEXT = re.compile(
    rb"\(?c[A-Za-z_][\w.]*\n\w+\n(p\d+\n|[()]|q[\x00-\x1f])|"
    rb"\(i[\w.]+\n\w+\n|\([dlt]p\d+\n|[VS].*\np\d+\n"
)
"""How pickles of the protocol 0 begin that hold anything but a number."""
_OLD = re.compile(rb"[}\])]q[\x00-\x1f]")
"""How those of the protocol 1 begin."""
_LIBRARIES = (
    "torchao",
    "bitsandbytes",
    "optimum.quanto",
    "quanto",
    "hqq",
    "auto_gptq",
    "gptqmodel",
    "awq",
    "compressed_tensors",
    "modelopt",
    "torch.ao.nn",
)
"""They put weights into classes of their own."""


def is_pickle(start: bytes) -> bool:
    r"""Whether a file begins as a pickle, of whatever protocol.

    >>> is_pickle(b"\x80\x04\x95"), is_pickle(b"(dp0\nVa\np1\n"), is_pickle(b"class\nant\nbee\n")
    (True, True, False)
    """
    is_new = start[:1] == b"\x80" and start[1:2] <= b"\x05"
    return is_new or bool(_TEXT.match(start) or _OLD.match(start))


def names_in(start: bytes) -> list[str]:
    """The modules and names that the beginning of a pickle asks for, as far as it can be read.

    >>> import pickle
    >>> names_in(pickle.dumps([io.BytesIO, print]))
    ['_io.BytesIO', 'builtins.print']
    """
    return list(dict.fromkeys(_names(start)))


def quantising_library(name: str) -> str | None:
    """The library that quantised weights, by the name of a class in a pickle.

    >>> quantising_library("torchao.dtypes.AffineQuantizedTensor"), quantising_library("a.Net")
    ('torchao', None)
    """
    found = (each for each in _LIBRARIES if name == each or name.startswith(f"{each}."))
    return next(found, None)


def _names(start: bytes) -> Iterator[str]:
    strings: list[object] = []  # what was pushed, from the last but one on; None for no string
    memo: list[object] = []
    try:
        for code, value, _ in pickletools.genops(io.BytesIO(start)):
            if code.name in ("GLOBAL", "INST"):
                yield str(value).replace(" ", ".")
            elif code.name == "STACK_GLOBAL":
                if all(isinstance(each, str) for each in strings):
                    yield ".".join(map(str, strings))
            elif code.name == "MEMOIZE":
                memo += strings[-1:]
                continue
            is_again = code.name.endswith("BINGET")
            strings = [*strings[-1:], memo[int(value or 0)] if is_again else value]
    except Exception:  # it goes on behind what was given, or is damaged: anything is raised then
        return

"""Read the names that a pickle would import, without unpickling it."""

import io
import pickletools
import re
from collections.abc import Iterator

_TEXT = re.compile(
    rb"\(?c[A-Za-z_][\w.]*\n\w+\n(p\d+\n|[()]|q[\x00-\x1f])|"
    rb"\(i[\w.]+\n\w+\n|\([dlt]p\d+\n|[VS].*\np\d+\n"
)
"""The start of pickles of protocol 0, except those of a number."""
_PROTOCOL_1 = re.compile(rb"[}\])]q[\x00-\x1f]")
"""The start of pickles of protocol 1."""
_QUANTIZATION_LIBRARIES = (
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
"""Libraries that store weights in classes of their own."""


def is_pickle(start: bytes) -> bool:
    r"""Whether a file begins as a pickle of any protocol.

    >>> is_pickle(b"\x80\x04\x95"), is_pickle(b"(dp0\nVa\np1\n"), is_pickle(b"class\nant\nbee\n")
    (True, True, False)
    """
    is_new = start[:1] == b"\x80" and start[1:2] <= b"\x05"
    return is_new or bool(_TEXT.match(start) or _PROTOCOL_1.match(start))


def global_names(start: bytes) -> list[str]:
    """The globals that the start of a pickle imports, as far as it can be read.

    >>> import pickle
    >>> global_names(pickle.dumps([io.BytesIO, print]))
    ['_io.BytesIO', 'builtins.print']
    """
    return list(dict.fromkeys(_names(start)))


def quantization_library(name: str) -> str | None:
    """The library that quantised weights, by the name of a class in a pickle.

    >>> quantization_library("torchao.dtypes.AffineQuantizedTensor"), quantization_library("a.Net")
    ('torchao', None)
    """
    found = (
        each for each in _QUANTIZATION_LIBRARIES if name == each or name.startswith(f"{each}.")
    )
    return next(found, None)


def _names(start: bytes) -> Iterator[str]:
    strings: list[object] = []  # the last two pushed values; None for no string
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
            is_fetched = code.name.endswith("BINGET")
            strings = [*strings[-1:], memo[int(value or 0)] if is_fetched else value]
    except Exception:  # truncated or damaged, which raises any kind of exception
        return

"""Placeholders for the plain data that training scripts save together with the tensors.

A pickle makes a date, a path or an array by calling a global. None of these is called here, not
even a harmless one: each known name is mapped to a class of this module, which drops its
arguments, so that the tensors in the same file can be read.
"""

import re
import sys
from collections import OrderedDict
from enum import EnumMeta
from typing import Any

from typing_extensions import Self


class Placeholder:
    """An object whose value is not read."""

    def __new__(cls, *_: Any) -> Self:
        """Make a placeholder; ignore the arguments."""
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class PlaceholderArray(Placeholder):
    """A NumPy array whose numbers are not read."""


class _AsDict:
    """Replaces a mapping by a plain one, in which state dicts are found."""

    def __new__(cls, *_: Any) -> Any:
        return OrderedDict()


class _AsList:
    """Replaces a sequence by a plain list."""

    def __new__(cls, *_: Any) -> Any:
        return []


_NUMPY_TYPES = (
    "bool bool_ int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64"
)
_NUMPY_DTYPES = "Bool Int8 Int16 Int32 Int64 UInt8 UInt16 UInt32 UInt64 Float16 Float32 Float64"
_NAMES: dict[type, dict[str, str]] = {
    Placeholder: {
        "argparse": "Namespace",
        "builtins": "Ellipsis bool bytes float frozenset int object range slice str tuple",
        "datetime": "date datetime time timedelta timezone",
        "decimal": "Decimal",
        "fractions": "Fraction",
        "numpy": f"dtype float16 {_NUMPY_TYPES}",
        "numpy.core.multiarray": "scalar",
        "numpy._core.multiarray": "scalar",
        "numpy.dtypes": " ".join(f"{name}DType" for name in _NUMPY_DTYPES.split()),
        "pathlib": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
        "pathlib._local": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
        "types": "SimpleNamespace",
        "uuid": "UUID SafeUUID",
    },
    PlaceholderArray: {
        "numpy": "ndarray",
        "numpy.core.multiarray": "_reconstruct",
        "numpy._core.multiarray": "_reconstruct",
    },
    _AsDict: {
        "builtins": "dict",
        "collections": "defaultdict",
        "easydict": "EasyDict",
        "lightning.fabric.utilities.data": "AttributeDict",
        "lightning.pytorch.utilities.parsing": "AttributeDict",
        "pytorch_lightning.utilities.parsing": "AttributeDict",
        "yacs.config": "CfgNode",
    },
    _AsList: {"builtins": "list", "collections": "deque"},
}
PLACEHOLDERS: list[tuple[type, str]] = [
    (placeholder, f"{module}.{name}")
    for placeholder, modules in _NAMES.items()
    for module, names in modules.items()
    for name in names.split()
]
"""For `torch.serialization.safe_globals`: the class that replaces each name."""


def unsupported_global(error: Exception) -> str | None:
    """The name that torch refused to unpickle, if the error is about one.

    >>> unsupported_global(ValueError("Unsupported global: GLOBAL os.mkdir was not an allowed …"))
    'os.mkdir'
    """
    found = re.search(r"GLOBAL (\S+)", str(error))
    return found[1] if found else None


def is_imported_enum(name: str) -> bool:
    """Whether a name is an enumeration in a module that this program has already imported.

    >>> import http
    >>> [is_imported_enum(name) for name in ("http.HTTPStatus", "os.mkdir", "x.y.Color")]
    [True, False, False]
    """
    module, _, attribute = name.rpartition(".")
    value = vars(sys.modules[module]).get(attribute) if module in sys.modules else None
    return issubclass(type(value), EnumMeta)

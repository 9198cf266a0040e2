"""Stand-ins for the plain data that training scripts save beside the tensors.

A pickle makes a date, a path or an array by calling what it names. Here none of that is called,
not even the harmless: each of these names, and no other, stands for a class of this module, which
takes what it is given and drops it, so that the tensors beside it can be read.
"""

import re
import sys
from collections import OrderedDict
from enum import EnumMeta
from typing import Any

from typing_extensions import Self


class Inert:
    """Something whose value is not read."""

    def __new__(cls, *_: Any) -> Self:
        """Make one without a look at the arguments."""
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class InertArray(Inert):
    """An array of NumPy, whose numbers are not read."""


class _AsDict:
    """In the place of a mapping: a plain one, in which state dicts are found."""

    def __new__(cls, *_: Any) -> Any:
        return OrderedDict()


class _AsList:
    """In the place of a sequence: a plain list."""

    def __new__(cls, *_: Any) -> Any:
        return []


_NUMPY_TYPES = (
    "bool bool_ int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64"
)
_NUMPY_DTYPES = "Bool Int8 Int16 Int32 Int64 UInt8 UInt16 UInt32 UInt64 Float16 Float32 Float64"
_NAMES: dict[type, dict[str, str]] = {
    Inert: {
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
    InertArray: {
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
INERT: list[tuple[type, str]] = [
    (stand_in, f"{module}.{name}")
    for stand_in, modules in _NAMES.items()
    for module, names in modules.items()
    for name in names.split()
]
"""For `torch.serialization.safe_globals`: what is made in the place of each name."""


def unknown_name(error: Exception) -> str | None:
    """The name at which torch stopped to unpickle, if it is that.

    >>> unknown_name(ValueError("Unsupported global: GLOBAL os.mkdir was not an allowed global"))
    'os.mkdir'
    """
    found = re.search(r"GLOBAL (\S+)", str(error))
    return found[1] if found else None


def is_loaded_enum(name: str) -> bool:
    """Whether a name is that of an enumeration of a module that this program has imported before.

    >>> import http
    >>> is_loaded_enum("http.HTTPStatus"), is_loaded_enum("os.mkdir"), is_loaded_enum("x.y.Color")
    (True, False, False)
    """
    module, _, attribute = name.rpartition(".")
    value = vars(sys.modules[module]).get(attribute) if module in sys.modules else None
    return issubclass(type(value), EnumMeta)

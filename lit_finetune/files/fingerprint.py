"""Describe an object by a text that changes when the object does: for cache keys."""

from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial
from hashlib import blake2b
from pathlib import PurePath
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

LITERAL_TYPES = (type(None), bool, int, float, complex, str, bytes, range, slice)
MAX_DEPTH = 12
Parts = Callable[[Any], str]


def describe(value: Any, *, parents: tuple[int, ...] = ()) -> str:
    """A text that is the same for equal settings, in every process.

    It holds the class and the attributes of an object, the code, defaults and closure of a
    function, and the bytes of a tensor; addresses in memory are left out.

    >>> from torchvision.transforms import v2
    >>> describe(v2.Resize(8)) == describe(v2.Resize(8)) != describe(v2.Resize(9))
    True
    >>> describe(lambda x: x + 1) == describe(lambda x: x + 2)
    False

    Args:
        value: Anything.
        parents: The `id` of each object that contains the value: no object is described within
            itself.
    """
    if isinstance(value, LITERAL_TYPES):
        return repr(value)
    if id(value) in parents or len(parents) == MAX_DEPTH:
        return _name(type(value))
    if isinstance(value, type | BuiltinFunctionType | ModuleType):
        return _name(value)
    parts = partial(describe, parents=(*parents, id(value)))
    return (
        _describe_data(value, parts)
        or _describe_code(value, parts)
        or _describe_object(value, parts)
    )


def digest(*values: Any) -> str:
    """A hash of the descriptions of these values."""
    text = "\n".join(map(describe, values))
    return blake2b(text.encode(), digest_size=16).hexdigest()


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """A hash of the names, shapes, types and bytes of tensors."""
    result = blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        result.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        result.update(flat.view(torch.uint8).numpy().data)
    return result.hexdigest()


def _describe_data(value: Any, parts: Parts) -> str | None:
    if isinstance(value, Tensor):
        return f"Tensor({digest_tensors({'': value})})"
    if isinstance(value, np.ndarray):
        content = blake2b(np.ascontiguousarray(value).tobytes(), digest_size=16).hexdigest()
        return f"array({value.shape}, {value.dtype}, {content})"
    if isinstance(value, PurePath | torch.dtype | torch.device | np.generic):
        return repr(value)
    if isinstance(value, Mapping):
        items = sorted(f"{parts(k)}: {parts(v)}" for k, v in value.items())
        return f"{_name(type(value))}({', '.join(items)})"
    if isinstance(value, Set):
        return f"{_name(type(value))}({', '.join(sorted(parts(v) for v in value))})"
    if isinstance(value, Sequence):
        return f"{_name(type(value))}({', '.join(parts(item) for item in value)})"
    return None


def _describe_code(value: Any, parts: Parts) -> str | None:
    if isinstance(value, partial):
        return f"partial({parts(value.func)}, {parts(value.args)}, {parts(value.keywords)})"
    if isinstance(value, MethodType):
        return f"{parts(value.__func__)} of {parts(value.__self__)}"
    if isinstance(value, CodeType):
        constants = parts(value.co_consts)
        return f"code({value.co_code.hex()}, {value.co_names}, {constants})"
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        contents = (value.__code__, value.__defaults__, value.__kwdefaults__, cells)
        return f"{_name(value)}({', '.join(map(parts, contents))})"
    return None


def _describe_object(value: Any, parts: Parts) -> str:
    """The class of an object and its attributes, including slots."""
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    in_slots = {name: getattr(value, name) for name in slots if hasattr(value, name)}
    attributes = {**in_slots, **getattr(value, "__dict__", {})}
    names = ("forward", "__call__")
    methods = [
        vars(kind)[name] for kind in type(value).__mro__ for name in names if name in vars(kind)
    ]
    code = getattr(methods[0], "__code__", None) if methods else None
    return f"{_name(type(value))}({parts(attributes)}, {parts(code)})"


def _name(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value)}"

"""Convert the values of metrics to scalars for loggers."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def scalars_by_name(
    values: Mapping[str, Any], classes: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The scalars in computed values, by name, and the values that are not scalars.

    A value for each class is named after the classes, an entry of a dictionary after its key.

    >>> scalars, rest = scalars_by_name(
    ...     {"val/acc": torch.tensor(0.5), "val/recall": torch.tensor([0.25, 1.0])}, ["ant", "bee"]
    ... )
    >>> {name: value.item() for name, value in scalars.items()}, rest
    ({'val/acc': 0.5, 'val/recall_ant': 0.25, 'val/recall_bee': 1.0}, {})
    >>> list(scalars_by_name({"val/confusion": torch.eye(2)}, ["ant", "bee"])[1])
    ['val/confusion']
    """
    scalars: dict[str, Tensor] = {}
    others: dict[str, Any] = {}
    for name, value in _flatten(values, classes):
        if _is_number(value):
            scalars[name] = torch.as_tensor(value).reshape(()).float()
        else:
            others[name] = value
    return scalars, others


def describe(value: Any) -> str:
    """The type and size of a value that is no scalar, in words.

    >>> describe(torch.eye(3)), describe((torch.ones(2), 3))
    ('a tensor (3, 3)', 'a tuple of 2')
    """
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    is_sized = isinstance(value, tuple | list)
    return f"a {type(value).__name__}" + (f" of {len(value)}" if is_sized else "")


def _flatten(values: Mapping[str, Any], classes: Sequence[str]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten({f"{name}_{key}": each for key, each in value.items()}, classes)
        elif isinstance(value, Tensor) and value.shape == (len(classes),) != (1,):
            yield from zip((f"{name}_{each}" for each in classes), value, strict=True)
        else:
            yield name, value


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.is_complex()
    return isinstance(value, int | float)

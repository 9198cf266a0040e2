"""Refuse to build a network that a file describes and that no memory could hold.

The numbers in a checkpoint or a config say how wide and how deep a network is. Somebody else may
have written them: they are held against what the file has in weights, before memory is taken.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors
from torch.utils._pytree import tree_map
from typing_extensions import override

from lit_finetune.files.memory import free_memory, readable

LARGEST_SIDE = 1 << 13
"""The side of a picture, in pixels, that a file may ask for."""
_SHAPE_A_NETWORK = ("num_classes", "in_chans", "image_size", "backbone_kwargs", "lora")
_ANY_NETWORK = 1 << 16
"""Numbers up to this one stand in the configs of small networks too, as ids of words."""
_ANY_HEAD = 10_000
_MOST_PARAMETERS = 10_000
"""Tensors in a network: the deepest that are published have some thousands."""
_UNKNOWN_MEMORY = 1 << 33
_MAKES_NONE = ("item", "tolist", "size", "dim", "numel", "stride")


def refuse_huge_numbers(hparams: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Refuse hyper-parameters of a network that cannot be the one whose weights stand beside them.

    >>> refuse_huge_numbers({"num_classes": 2}, {"weight": torch.zeros(2, 8)})
    >>> refuse_huge_numbers({"num_classes": 10**12}, {"weight": torch.zeros(2, 8)})
    Traceback (most recent call last):
    ValueError: The checkpoint says `num_classes` 1,000,000,000,000, but ...

    Args:
        hparams: What a checkpoint says, without what the user says anew.
        state: Its state dict.

    Raises:
        ValueError: Names the key and the value.
    """
    held = sum(each.numel() for each in state.values() if isinstance(each, Tensor))
    for place, number in _numbers(hparams):
        most = max(held, _ANY_HEAD if place == "num_classes" else _ANY_NETWORK)
        if place.endswith("image_size"):
            most = LARGEST_SIDE
        if abs(number) > most:
            raise ValueError(
                f"The checkpoint says `{place}` {number:,}, but all its weights together are"
                f" {held:,} numbers: it is damaged, or was made to do harm."
            )


@contextmanager
def limited_build(
    hparams: Mapping[str, Any], state: Mapping[str, Any], *, said: Iterable[str]
) -> Iterator[None]:
    """Let a network be built as a checkpoint describes it, if that is no larger than can be.

    Args:
        hparams: What the checkpoint says.
        state: Its state dict, which says how large the network is.
        said: The names of the hyper-parameters that the user gives anew.

    Raises:
        ValueError: Names the hyper-parameter and its value.
    """
    theirs = {key: value for key, value in hparams.items() if key not in said}
    refuse_huge_numbers(theirs, state)
    held = sum(each.nbytes for each in state.values() if isinstance(each, Tensor))
    told = f"The checkpoint describes a network, with {largest_number(theirs)}"
    with limited_memory(told, held=held):
        yield


def largest_number(hparams: Mapping[str, Any], keys: Iterable[str] = _SHAPE_A_NETWORK) -> str:
    """The largest number in some parts of hyper-parameters, with its key, for a message.

    >>> largest_number({"backbone_kwargs": {"width": 4096, "groups": 2}, "num_classes": 2})
    '`backbone_kwargs.width` 4,096'
    """
    numbers = sorted(_numbers(hparams, keys), key=lambda each: each[1])
    return f"`{numbers[-1][0]}` {numbers[-1][1]:,}" if numbers else "no numbers"


def _numbers(
    hparams: Mapping[str, Any], keys: Iterable[str] = _SHAPE_A_NETWORK
) -> Iterator[tuple[str, int | float]]:
    waiting = [(key, hparams[key]) for key in keys if key in hparams]
    for place, value in waiting:  # it grows
        if isinstance(value, Mapping):
            waiting += [(f"{place}.{key}", inner) for key, inner in value.items()]
        elif isinstance(value, list | tuple):
            waiting += [(place, inner) for inner in value]
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield place, value


@contextmanager
def limited_memory(told: str, *, held: int = 0) -> Iterator[None]:
    """Refuse to make a network larger than half of the memory that is free.

    Args:
        told: What describes it, as the beginning of a sentence.
        held: Bytes of weights that are there for it: eight times as much is always possible.

    Raises:
        ValueError: A tensor, or all parameters, would be larger, or there are too many.
    """
    most = max(8 * held, (free_memory() or _UNKNOWN_MEMORY) // 2)
    limit = _Limit(most, told)
    handle = register_module_parameter_registration_hook(limit.count)
    try:
        with limit:
            yield
    except (RuntimeError, MemoryError, OverflowError) as error:
        text = str(error)
        if not isinstance(error, RuntimeError) or "allocate" in text or "overflow" in text:
            raise ValueError(f"{told}, more than can be: {text[:200]}") from error
        raise
    finally:
        handle.remove()


class _Limit(TorchFunctionMode):
    """Looks at the size of what is made, without memory, before it is made."""

    def __init__(self, most: int, told: str) -> None:
        super().__init__()
        self.most, self.told = most, told
        self.taken, self.parameters = 0, 0

    @override
    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if not name.startswith("__") and not name.endswith("_") and name not in _MAKES_NONE:
            self._refuse(_bytes(_tried(func, args, kwargs)))
        return func(*args, **kwargs)

    def count(self, module: Any, name: str, parameter: Any) -> None:
        """Take note of a parameter of a module."""
        if isinstance(parameter, Tensor):
            self.parameters += 1
            self.taken += parameter.nbytes if parameter.device.type != "meta" else 0
            self._refuse(self.taken)

    def _refuse(self, size: int) -> None:
        if size > self.most or self.parameters > _MOST_PARAMETERS:
            what = readable(size) if size > self.most else f"{self.parameters:,} parameters"
            raise ValueError(
                f"{self.told}, of {what} and more: that is more than can be. It is damaged, or was"
                " made to do harm."
            )


def _tried(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What a function of torch gives on tensors without data; None where it needs them."""
    options = tree_map(_without_data, kwargs)
    if func in _device_constructors():
        options["device"] = "meta"
    try:
        with torch._C.DisableTorchFunction():
            return func(*tree_map(_without_data, args), **options)
    except Exception:  # it needs data, or will fail by itself
        return None


def _without_data(value: Any) -> Any:
    if isinstance(value, Tensor) and value.layout == torch.strided:
        strides = value.stride()
        return torch.empty_strided(value.shape, strides, dtype=value.dtype, device="meta")
    return value


def _bytes(value: Any) -> int:
    return value.untyped_storage().nbytes() if isinstance(value, Tensor) else 0

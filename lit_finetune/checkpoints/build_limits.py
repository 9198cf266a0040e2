"""Refuse to build a network that is too large for its weights or for memory.

The numbers in a checkpoint or a config define how wide and how deep a network is. The file may not
be trusted: the numbers are compared with the size of its weights before memory is allocated.
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

from lit_finetune.files.memory import format_bytes, free_memory

MAX_IMAGE_SIDE = 1 << 13
"""The largest side of an image, in pixels, that a file may define."""
_SIZE_KEYS = ("num_classes", "in_chans", "image_size", "backbone_kwargs", "lora")
_MAX_UNCHECKED_NUMBER = 1 << 16
"""Smaller numbers occur in the configs of small networks, too, such as ids of tokens."""
_MAX_UNCHECKED_CLASSES = 10_000
_MAX_TENSORS = 10_000
"""The most tensors of a network: the deepest published ones have some thousands."""
_DEFAULT_MEMORY = 1 << 33
_NO_TENSOR_FUNCTIONS = ("item", "tolist", "size", "dim", "numel", "stride")


def refuse_huge_numbers(hparams: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Refuse hyper-parameters with numbers that are too large for the weights in the checkpoint.

    >>> refuse_huge_numbers({"num_classes": 2}, {"weight": torch.zeros(2, 8)})
    >>> refuse_huge_numbers({"num_classes": 10**12}, {"weight": torch.zeros(2, 8)})
    Traceback (most recent call last):
    ValueError: The checkpoint says `num_classes` 1,000,000,000,000, but ...

    Args:
        hparams: The checkpoint's hyper-parameters, without those that the user overrides.
        state: Its state dict.

    Raises:
        ValueError: Names the key and the value.
    """
    weights_size = sum(each.numel() for each in state.values() if isinstance(each, Tensor))
    for path, number in _numbers(hparams):
        max_size = max(
            weights_size, _MAX_UNCHECKED_CLASSES if path == "num_classes" else _MAX_UNCHECKED_NUMBER
        )
        if path.endswith("image_size"):
            max_size = MAX_IMAGE_SIDE
        if abs(number) > max_size:
            raise ValueError(
                f"The checkpoint says `{path}` {number:,}, but all its weights together are"
                f" {weights_size:,} numbers: it is damaged, or was made to do harm."
            )


@contextmanager
def limited_build(
    hparams: Mapping[str, Any], state: Mapping[str, Any], *, overrides: Iterable[str]
) -> Iterator[None]:
    """Limit the memory of a network that is built from a checkpoint, within a context.

    Args:
        hparams: The checkpoint's hyper-parameters.
        state: Its state dict, whose size sets the limit.
        overrides: The names of the hyper-parameters that the user overrides.

    Raises:
        ValueError: Names the hyper-parameter and its value.
    """
    followed = {key: value for key, value in hparams.items() if key not in overrides}
    refuse_huge_numbers(followed, state)
    weights_size = sum(each.nbytes for each in state.values() if isinstance(each, Tensor))
    description = f"The checkpoint describes a network, with {largest_number(followed)}"
    with limited_memory(description, weights_size=weights_size):
        yield


def largest_number(hparams: Mapping[str, Any], keys: Iterable[str] = _SIZE_KEYS) -> str:
    """The largest number in some of the hyper-parameters, with its key, for a message.

    >>> largest_number({"backbone_kwargs": {"width": 4096, "groups": 2}, "num_classes": 2})
    '`backbone_kwargs.width` 4,096'
    """
    numbers = sorted(_numbers(hparams, keys), key=lambda each: each[1])
    return f"`{numbers[-1][0]}` {numbers[-1][1]:,}" if numbers else "no numbers"


def _numbers(
    hparams: Mapping[str, Any], keys: Iterable[str] = _SIZE_KEYS
) -> Iterator[tuple[str, int | float]]:
    pending = [(key, hparams[key]) for key in keys if key in hparams]
    for path, value in pending:  # it grows
        if isinstance(value, Mapping):
            pending += [(f"{path}.{key}", item) for key, item in value.items()]
        elif isinstance(value, list | tuple):
            pending += [(path, item) for item in value]
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield path, value


@contextmanager
def limited_memory(description: str, *, weights_size: int = 0) -> Iterator[None]:
    """Refuse to build a network larger than half of the free memory, within a context.

    Args:
        description: The beginning of the message.
        weights_size: The bytes of the network's weights in the file: eight times as much is always
            allowed.

    Raises:
        ValueError: A tensor or all parameters are larger, or there are too many tensors.
    """
    max_size = max(8 * weights_size, (free_memory() or _DEFAULT_MEMORY) // 2)
    mode = _SizeLimitMode(max_size, description)
    handle = register_module_parameter_registration_hook(mode.count)
    try:
        with mode:
            yield
    except (RuntimeError, MemoryError, OverflowError) as error:
        text = str(error)
        if not isinstance(error, RuntimeError) or "allocate" in text or "overflow" in text:
            raise ValueError(f"{description}, more than can be: {text[:200]}") from error
        raise
    finally:
        handle.remove()


class _SizeLimitMode(TorchFunctionMode):
    """Computes the size of each new tensor on the meta device before it is created."""

    def __init__(self, max_size: int, description: str) -> None:
        super().__init__()
        self.max_size, self.description = max_size, description
        self.allocated, self.num_parameters = 0, 0

    @override
    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if (
            not name.startswith("__")
            and not name.endswith("_")
            and name not in _NO_TENSOR_FUNCTIONS
        ):
            self._refuse(_num_bytes(_meta_result(func, args, kwargs)))
        return func(*args, **kwargs)

    def count(self, module: Any, name: str, parameter: Any) -> None:
        """Count a parameter that a module registers."""
        if isinstance(parameter, Tensor):
            self.num_parameters += 1
            self.allocated += parameter.nbytes if parameter.device.type != "meta" else 0
            self._refuse(self.allocated)

    def _refuse(self, size: int) -> None:
        if size > self.max_size or self.num_parameters > _MAX_TENSORS:
            is_large = size > self.max_size
            text = format_bytes(size) if is_large else f"{self.num_parameters:,} parameters"
            raise ValueError(
                f"{self.description}, of {text} and more: that is more than can be. It is"
                " damaged, or was made to do harm."
            )


def _meta_result(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The result of a torch function on meta tensors; None if it needs values."""
    options = tree_map(_to_meta, kwargs)
    if func in _device_constructors():
        options["device"] = "meta"
    try:
        with torch._C.DisableTorchFunction():
            return func(*tree_map(_to_meta, args), **options)
    except Exception:  # it needs values, or the real call fails as well
        return None


def _to_meta(value: Any) -> Any:
    if isinstance(value, Tensor) and value.layout == torch.strided:
        strides = value.stride()
        return torch.empty_strided(value.shape, strides, dtype=value.dtype, device="meta")
    return value


def _num_bytes(value: Any) -> int:
    return value.untyped_storage().nbytes() if isinstance(value, Tensor) else 0

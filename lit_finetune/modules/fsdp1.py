"""See through FullyShardedDataParallel (FSDP1), under which parameters are pieces of one vector.

With `use_orig_params=True` the parameters stay the same objects, and the wrapper looks at their
`requires_grad` before each forward pass: they can be frozen and thawed at any time. But their
values are flat and in part elsewhere, so that shapes no longer tell weights from biases, or what is
a layer; and the modules that are wrapped have other names. What follows from shapes has to be
noted before.
"""

from collections.abc import Iterator

from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.optim import (
    ASGD,
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
    Rprop,
)

_WRAPPED = "_fsdp_wrapped_module"
_NUMBER_BY_NUMBER = (
    ASGD,
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    NAdam,
    RAdam,
    RMSprop,
    Rprop,
)
"""The optimizers to which it is the same whether they are given a weight or a piece of it."""


def unwrapped_name(name: str) -> str:
    """The name of a module or a parameter before the modules around it were wrapped.

    >>> unwrapped_name("net.layer4._fsdp_wrapped_module.0.weight")
    'net.layer4.0.weight'
    """
    if _WRAPPED not in name:
        return name
    return ".".join(part for part in name.split(".") if part != _WRAPPED)


def unpruned_name(name: str) -> str:
    """The name of a parameter before `torch.nn.utils.prune` put a mask on it.

    >>> unpruned_name("net.fc.weight_orig"), unpruned_name("net.fc.bias")
    ('net.fc.weight', 'net.fc.bias')
    """
    return name.removesuffix("_orig")


def parameters_by_name(
    model: nn.Module, *, remove_duplicate: bool = True
) -> dict[str, nn.Parameter]:
    """A model's parameters by the names that they have without a wrapper."""
    named = model.named_parameters(remove_duplicate=remove_duplicate)
    return {unwrapped_name(name): parameter for name, parameter in named}


def modules_by_name(
    model: nn.Module, *, remove_duplicate: bool = True
) -> Iterator[tuple[str, nn.Module]]:
    """A model's modules, and the wrappers around some of them, under the names without a wrapper.

    A wrapper and what it wraps have the same name, the wrapper comes first.
    """
    for name, module in model.named_modules(remove_duplicate=remove_duplicate):
        yield unwrapped_name(name), module


def is_flat(model: nn.Module) -> bool:
    """Whether a model has been wrapped, as a whole or in part."""
    wrapped = any(isinstance(module, FullyShardedDataParallel) for module in model.modules())
    return wrapped or any(hasattr(parameter, "_fsdp_flattened") for parameter in model.parameters())


def whole_sizes(model: nn.Module) -> dict[int, int]:
    """How many numbers each parameter has in all processes together, by the parameter's `id`.

    Args:
        model: The outermost wrapper, or a network without one.
    """
    sizes = {id(parameter): parameter.numel() for parameter in model.parameters()}
    for module in model.modules():
        vector = getattr(module, "_flat_param", None)
        if isinstance(module, FullyShardedDataParallel) and vector is not None:
            pairs = zip(vector._params, vector._shapes, strict=True)
            sizes.update((id(parameter), shape.numel()) for parameter, shape in pairs)
    return sizes


def refuse_whole_tensor_optimizer(optimizer: Optimizer) -> None:
    """Refuse an optimizer that may look at a weight as a whole, where it would be given pieces.

    Raises:
        ValueError: Names the optimizers that work.
    """
    if type(optimizer) not in _NUMBER_BY_NUMBER:
        known = ", ".join(kind.__name__ for kind in _NUMBER_BY_NUMBER)
        raise ValueError(
            f"Under FSDPStrategy {type(optimizer).__name__} would be given flat pieces of weights,"
            f" and may look at shapes or norms. Use one of {known}, or ModelParallelStrategy."
        )

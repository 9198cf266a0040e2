"""Names and sizes under FullyShardedDataParallel (FSDP1), which flattens parameters.

With `use_orig_params=True` the parameters stay the same objects, and the wrapper reads their
`requires_grad` before each forward: they can be frozen and unfrozen at any time. But each process
holds flat pieces of them, so shapes no longer distinguish weights from biases or show the layers,
and wrapped modules have other names. Decisions from shapes have to be made before wrapping.
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

_WRAPPER_NAME = "_fsdp_wrapped_module"
_ELEMENTWISE = (
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
"""The optimizers that update each element on its own, so that flat pieces of weights will do."""


def without_fsdp1(name: str) -> str:
    """The name of a module or a parameter without the parts that FSDP1 adds.

    >>> without_fsdp1("net.layer4._fsdp_wrapped_module.0.weight")
    'net.layer4.0.weight'
    """
    if _WRAPPER_NAME not in name:
        return name
    return ".".join(part for part in name.split(".") if part != _WRAPPER_NAME)


def unpruned_name(name: str) -> str:
    """The name of a parameter before `torch.nn.utils.prune` put a mask on it.

    >>> unpruned_name("net.fc.weight_orig"), unpruned_name("net.fc.bias")
    ('net.fc.weight', 'net.fc.bias')
    """
    return name.removesuffix("_orig")


def parameters_by_name(
    model: nn.Module, *, remove_duplicate: bool = True
) -> dict[str, nn.Parameter]:
    """A model's parameters by their names without the wrapper's parts."""
    named = model.named_parameters(remove_duplicate=remove_duplicate)
    return {without_fsdp1(name): parameter for name, parameter in named}


def modules_by_name(
    model: nn.Module, *, remove_duplicate: bool = True
) -> Iterator[tuple[str, nn.Module]]:
    """A model's modules and wrappers, by their names without the wrappers' parts.

    A wrapper and its module have the same name; the wrapper comes first.
    """
    for name, module in model.named_modules(remove_duplicate=remove_duplicate):
        yield without_fsdp1(name), module


def is_fsdp1_wrapped(model: nn.Module) -> bool:
    """Whether a model or one of its modules is wrapped by FSDP1."""
    wrapped = any(isinstance(module, FullyShardedDataParallel) for module in model.modules())
    return wrapped or any(hasattr(parameter, "_fsdp_flattened") for parameter in model.parameters())


def full_sizes(model: nn.Module) -> dict[int, int]:
    """The number of elements of each full parameter, over all processes, by the parameter's `id`.

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


def refuse_non_elementwise_optimizer(optimizer: Optimizer) -> None:
    """Refuse an optimizer that may need whole weights: under FSDP1 it gets flat pieces.

    Raises:
        ValueError: Names the optimizers that work.
    """
    if type(optimizer) not in _ELEMENTWISE:
        elementwise = ", ".join(kind.__name__ for kind in _ELEMENTWISE)
        raise ValueError(
            f"Under FSDPStrategy {type(optimizer).__name__} would be given flat pieces of weights,"
            f" and may look at shapes or norms. Use one of {elementwise}, or ModelParallelStrategy."
        )

"""The order in which a network uses its parameters; registration may have another one.

Twins registers the patch embeddings of all stages first, CoaT all its class tokens; users' networks
may do the same. timm's networks declare their order (`group_matcher`); others run on meta tensors.
"""

import itertools
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from lit_finetune.modules.compiled import plain_name

_ORDER_ATTRIBUTE = "_lit_finetune_forward_order"
"""The attribute of a network that holds the order that a run has shown."""


def trace_parameter_order(network: nn.Module, images: Tensor) -> tuple[str, ...]:
    """The names of the parameters in the order of their first use in a forward of `images`.

    A copy of the network on the meta device runs in eval mode: this needs next to no memory or
    time, and does not change the network. Parameters that it does not use are left out.

    >>> class Net(nn.ModuleDict):
    ...     def forward(self, x):
    ...         return self["late"](self["early"](x))
    >>> net = Net({"late": nn.Linear(2, 2), "early": nn.Linear(2, 2)})
    >>> trace_parameter_order(net, torch.zeros(1, 2))
    ('early.weight', 'early.bias', 'late.weight', 'late.bias')

    Raises:
        Exception: Whatever the network raises; not every network can run on meta tensors.
    """
    copied = _meta_copy(network)
    names = {id(parameter): name for name, parameter in copied.named_parameters()}
    with torch.random.fork_rng(devices=[]), torch.no_grad(), ParameterUseMode(names) as mode:
        copied.eval()(images.to("meta"))
    return tuple(mode.used_names)


def record_parameter_order(network: nn.Module, images: Tensor) -> bool:
    """Run a network on meta tensors and store the order of its parameters in it, if it can run.

    A network of timm declares its order and is not run. A network whose forward needs values cannot
    run: its blocks stay in the order of registration.

    Returns:
        Whether the order is known now.
    """
    if declared_ranks(network):
        return True
    try:
        order = trace_parameter_order(network, images)
    except Exception:  # whatever a user's network raises on meta tensors
        return False
    _store_order(network, tuple(plain_name(name) for name in order))
    return True


def _store_order(network: nn.Module, order: tuple[str, ...]) -> None:
    """Store the order in a network, and in its only child with parameters, if it is a wrapper."""
    vars(network)[_ORDER_ATTRIBUTE] = order
    inside = [item for item in network.named_children() if any(True for _ in item[1].parameters())]
    if len(inside) == 1:
        [(name, inner)] = inside
        prefix = f"{name}."
        _store_order(inner, tuple(n.removeprefix(prefix) for n in order if n.startswith(prefix)))


def recorded_ranks(network: nn.Module) -> dict[str, float]:
    """The rank of each parameter in the order that was recorded; names without `_orig_mod`."""
    order: tuple[str, ...] = vars(network).get(_ORDER_ATTRIBUTE, ())
    return {name: float(rank) for rank, name in enumerate(order)}


def declared_ranks(network: nn.Module) -> dict[str, float]:
    """The rank that timm's networks give each parameter; empty for other networks.

    timm uses the ranks for layer-wise learning rate decay. The order among parameters of one rank
    is not known; a parameter of a lower rank is used earlier.
    """
    ranks: dict[str, float] = {}
    for offset, (path, module) in zip(
        itertools.count(0, 10**6), _timm_networks(network), strict=False
    ):
        inside = f"{path}." if path else ""
        for name, rank in _group_numbers(module).items():
            ranks[plain_name(inside + name)] = offset + rank
    return ranks


def _timm_networks(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The outermost networks of timm in a module, with their paths."""
    is_timm = any(base.__module__.startswith("timm.") for base in type(module).__mro__)
    if is_timm and callable(getattr(module, "group_matcher", None)):
        yield path, module
        return
    for name, child in module.named_children():
        yield from _timm_networks(child, f"{path}.{name}" if path else name)


def _group_numbers(module: Any) -> dict[str, int]:
    """The group's number of each parameter, except for those of the last group.

    timm puts parameters that match none of the network's patterns into the last group, wherever
    they are used.
    """
    from timm.models import group_parameters  # `module` is one of timm's, so timm is there

    groups: Mapping[int, list[str]] = group_parameters(module, module.group_matcher(coarse=False))
    last = max(groups, default=0)
    return {name: number for number, names in groups.items() for name in names if number != last}


class ParameterUseMode(TorchFunctionMode):
    """Records the order in which torch functions first receive the tensors with these `id`s."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self.names = names
        self.used_names: dict[str, None] = {}
        """The names in the order of first use."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Record the tensors among the arguments, and call the function."""
        if getattr(func, "__name__", "") != "__get__":  # reading an attribute is no use
            for leaf in tree_leaves((args, kwargs)):
                if id(leaf) in self.names:
                    self.used_names[self.names[id(leaf)]] = None
        return func(*args, **(kwargs or {}))


def _meta_copy(network: nn.Module) -> nn.Module:
    """A copy of a network with its parameters and buffers on the meta device."""
    tensors = itertools.chain(network.parameters(), network.buffers())
    return deepcopy(network, memo={id(tensor): _to_meta(tensor) for tensor in tensors})


def _to_meta(tensor: Tensor) -> Tensor:
    copied = torch.empty_like(tensor, device="meta")
    return (
        nn.Parameter(copied, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copied
    )

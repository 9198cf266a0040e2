"""In which order a network uses its parameters, which need not be the order of registration.

Twins registers the patch embeddings of all stages first, CoaT all its class tokens; so may you.
timm's networks say what their order is (`group_matcher`); any other can be run without data.
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

_NOTED = "_lit_finetune_forward_order"
"""The attribute in which a network keeps the order that a run has shown."""


def use_order(network: nn.Module, images: Tensor) -> tuple[str, ...]:
    """The names of the parameters in the order of their first use, when `images` are classified.

    A copy of the network without data runs in eval mode: that needs no memory and no time to speak
    of, and nothing in the network changes. What it does not use is left out.

    >>> class Net(nn.ModuleDict):
    ...     def forward(self, x):
    ...         return self["late"](self["early"](x))
    >>> net = Net({"late": nn.Linear(2, 2), "early": nn.Linear(2, 2)})
    >>> use_order(net, torch.zeros(1, 2))
    ('early.weight', 'early.bias', 'late.weight', 'late.bias')

    Raises:
        Exception: Whatever the network raises; not every one can run without data.
    """
    meta_copy = _without_data(network)
    names = {id(parameter): name for name, parameter in meta_copy.named_parameters()}
    with torch.random.fork_rng(devices=[]), torch.no_grad(), Uses(names) as uses:
        meta_copy.eval()(images.to("meta"))
    return tuple(uses.seen)


def note_use_order(network: nn.Module, images: Tensor) -> bool:
    """Run a network without data and let it remember the order of its parameters, if it can run.

    A network of timm says its order itself and is not run. Nor can be what asks for data: its
    blocks stay in the order of registration.

    Returns:
        Whether the order is known now.
    """
    if declared_ranks(network):
        return True
    try:
        order = use_order(network, images)
    except Exception:  # whatever a network of the user's raises where it is given no data
        return False
    _note(network, tuple(plain_name(name) for name in order))
    return True


def _note(network: nn.Module, order: tuple[str, ...]) -> None:
    """Let a network keep the order, and the one inside if it is nothing but a cover."""
    vars(network)[_NOTED] = order
    inside = [item for item in network.named_children() if any(True for _ in item[1].parameters())]
    if len(inside) == 1:
        [(name, inner)] = inside
        prefix = f"{name}."
        _note(inner, tuple(n.removeprefix(prefix) for n in order if n.startswith(prefix)))


def noted_ranks(network: nn.Module) -> dict[str, float]:
    """The place of each parameter in the order that `note_use_order` found; names are plain."""
    noted: tuple[str, ...] = vars(network).get(_NOTED, ())
    return {name: float(place) for place, name in enumerate(noted)}


def declared_ranks(network: nn.Module) -> dict[str, float]:
    """The places that timm's networks give their parameters; none for networks of others.

    They are meant for rates that decay with depth. Parameters in one place may be used one after
    the other, but what is in places before another is used before it.
    """
    ranks: dict[str, float] = {}
    for offset, (path, module) in zip(itertools.count(0, 10**6), _declaring(network), strict=False):
        inside = f"{path}." if path else ""
        for name, place in _grouped(module).items():
            ranks[plain_name(inside + name)] = offset + place
    return ranks


def _declaring(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The outermost networks of timm in a module."""
    of_timm = any(base.__module__.startswith("timm.") for base in type(module).__mro__)
    if of_timm and callable(getattr(module, "group_matcher", None)):
        yield path, module
        return
    for name, child in module.named_children():
        yield from _declaring(child, f"{path}.{name}" if path else name)


def _grouped(module: Any) -> dict[str, int]:
    """The number of the group that each parameter is in, but for those of the last one.

    There timm puts whatever no pattern of the network's names, wherever it is used.
    """
    from timm.models import group_parameters  # it is a network of timm's

    groups: Mapping[int, list[str]] = group_parameters(module, module.group_matcher(coarse=False))
    last = max(groups, default=0)
    return {name: number for number, names in groups.items() for name in names if number != last}


class Uses(TorchFunctionMode):
    """Notes which tensors, of those whose `id` has a name, functions of torch are given first."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self.names = names
        self.seen: dict[str, None] = {}
        """The names in the order of first use."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call the function, and note what it is given."""
        if getattr(func, "__name__", "") != "__get__":  # a look at the shape is no use
            for leaf in tree_leaves((args, kwargs)):
                if id(leaf) in self.names:
                    self.seen[self.names[id(leaf)]] = None
        return func(*args, **(kwargs or {}))


def _without_data(network: nn.Module) -> nn.Module:
    """A copy of a network whose parameters and buffers have no data."""
    tensors = itertools.chain(network.parameters(), network.buffers())
    return deepcopy(network, memo={id(tensor): _on_meta(tensor) for tensor in tensors})


def _on_meta(tensor: Tensor) -> Tensor:
    meta_copy = torch.empty_like(tensor, device="meta")
    return (
        nn.Parameter(meta_copy, tensor.requires_grad)
        if isinstance(tensor, nn.Parameter)
        else meta_copy
    )

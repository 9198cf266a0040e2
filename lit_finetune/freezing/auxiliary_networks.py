"""Networks in a module that are not the one that trains: teachers, averaged copies, metrics.

They are told apart before anything trains. A child of the module is one of them

* if it is a metric (torchmetrics) or an `AveragedModel`, or
* if none of its parameters required a gradient, it has several layers, and what is left without it
  is a network by itself. A frozen backbone, to which what is left is the head, is none. So is one
  in eval mode, if a network that is in training mode takes the same input.

Deeper in a module they are told by a network beside them that trains, takes the same input, and is
no block before or behind them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from torch import nn
from torch.optim.swa_utils import AveragedModel
from torchmetrics import Metric

from lit_finetune.blocks.block import Block, list_blocks
from lit_finetune.freezing.freeze import is_fixed
from lit_finetune.freezing.parallel_networks import (
    begin_alike,
    inlet,
    layers,
    leaves,
    num_layers,
    parallel_to,
)
from lit_finetune.modules.fsdp1 import parameters_by_name
from lit_finetune.schedules.phases import Schedule, Selector
from lit_finetune.schedules.selectors import select, selects_by_index


def side_networks(
    model: nn.Module,
    *,
    network: str | None = None,
    is_container: Callable[[nn.Module], bool] = lambda module: False,
) -> tuple[str, ...]:
    """The names of the children of a module that are beside the network that trains.

    >>> module = nn.ModuleDict({
    ...     "teacher": nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 2)),
    ...     "student": nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)),
    ... })
    >>> _ = module["teacher"].requires_grad_(False)
    >>> side_networks(module)
    ('teacher',)

    Args:
        model: A module before its training.
        network: The child that trains, where that is known.
        is_container: Whether a child is a module that may itself hold several networks.
    """
    children = {name: child for name, child in model.named_children() if _is_filled(child)}
    kinds = [name for name, child in children.items() if isinstance(child, Metric | AveragedModel)]
    rest = {name: child for name, child in children.items() if name not in kinds}
    fixed = [
        name
        for name, child in rest.items()
        if name != network and (_is_fixed(model, name, child) or _looks_on(child, rest.values()))
    ]
    if network is None:
        fixed = [name for name in fixed if num_layers(rest[name]) > 1]
        trained = [child for name, child in rest.items() if name not in fixed]
        if not _is_network(model, [*kinds, *fixed]):
            fixed = []
        fixed = [name for name in fixed if not _feeds(rest[name], trained)]
    sides = [name for name in children if name in kinds or name in fixed]
    for name, child in rest.items():
        if name not in fixed and is_container(child):
            inner = side_networks(child, is_container=is_container)
            sides += [f"{name}.{each}" for each in inner]
        elif name not in fixed and network is None:
            sides += [f"{name}.{each}" for each in _beside_within(child)]
    return tuple(sides)


def _beside_within(model: nn.Module) -> tuple[str, ...]:
    """The networks beside one that trains, in a module of any kind."""

    def is_aside(name: str, child: nn.Module) -> bool:
        return _is_fixed(model, name, child) or not _is_awake(child)

    def trains(name: str, child: nn.Module) -> bool:
        return not is_aside(name, child)

    return parallel_to(model, is_aside=is_aside, trains=trains)


@contextmanager
def without_modules(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Show a module as it would be without some of the modules in it."""
    kept: list[tuple[nn.Module, dict[str, nn.Module | None]]] = []
    for name in names:
        path, _, own = name.rpartition(".")
        owner = model.get_submodule(path)
        kept.append((owner, dict(owner._modules)))
        del owner._modules[own]
    try:
        yield
    finally:
        for owner, modules in reversed(kept):
            owner._modules.clear()
            owner._modules.update(modules)


def parameters_within(model: nn.Module, names: Sequence[str]) -> tuple[str, ...]:
    """The parameters of some modules, without those that the rest of the model shares."""
    if not names:
        return ()
    with without_modules(model, names):
        shared = {id(parameter) for parameter in model.parameters()}
    named = parameters_by_name(model, remove_duplicate=False)
    return tuple(name for name, parameter in named.items() if id(parameter) not in shared)


def named_alone(
    schedule: Schedule, blocks: Sequence[Block], whole: Sequence[Block]
) -> frozenset[str]:
    """The parameters that a schedule names although they are in none of the blocks.

    Args:
        schedule: Its selectors that count blocks are passed over.
        blocks: Those of the network that trains.
        whole: Those of the module with all its networks.
    """
    found: set[str] = set()
    for phase in schedule:
        added = [selector for selection in phase.adds for selector in selection.modules]
        for selector in (*added, *phase.freezes):
            if not selects_by_index(selector) and not _finds(selector, blocks):
                found.update(_finds(selector, whole))
    return frozenset(found)


def _finds(selector: Selector, blocks: Sequence[Block]) -> tuple[str, ...]:
    try:
        return select(selector, blocks)
    except ValueError:
        return ()


def _is_filled(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _is_fixed(model: nn.Module, name: str, child: nn.Module) -> bool:
    named = child.named_parameters()
    return all(is_fixed(model, f"{name}.{own}", parameter) for own, parameter in named)


def _is_awake(child: nn.Module) -> bool:
    """Whether something in a network is in training mode; a list of networks says nothing."""
    return any(module.training for module in leaves(child))


def _looks_on(child: nn.Module, children: Iterable[nn.Module]) -> bool:
    """Whether a network is in eval mode, beside one in training mode that begins alike.

    So is a teacher that runs under `torch.no_grad()`, whatever its `requires_grad`.
    """
    awake = [each for each in children if each is not child and each.training]
    return not _is_awake(child) and any(begin_alike(child, each) for each in awake)


def _is_network(model: nn.Module, without: Sequence[str]) -> bool:
    """Whether what is left of a module is more than a head."""
    with without_modules(model, without):
        if next(model.parameters(), None) is None:
            return False
        return sum(bool(block.parameters) for block in list_blocks(model)) > 1


def _feeds(fixed: nn.Module, trained: Sequence[nn.Module]) -> bool:
    """Whether something that trains may take what a frozen network gives, by the sizes of layers.

    A network that begins like one that trains, such as a copy of it, runs beside it.
    """
    ours, begins = layers(fixed), [layers(each)[0] for each in trained if layers(each)]
    if not ours or any(inlet(ours[0]) == inlet(begin) for begin in begins):
        return False
    is_map, width = isinstance(ours[-1], nn.modules.conv._ConvNd), ours[-1].weight.shape[0]
    for begin in begins:
        is_linear, size = inlet(begin)
        if size == width and (is_linear or is_map):
            return True
        if is_linear and is_map and size % width == 0:  # a map that was flattened
            return True
    return False

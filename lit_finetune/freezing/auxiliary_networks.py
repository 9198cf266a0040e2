"""Find the networks in a module other than the one that trains: teachers, averages, metrics.

They are found before training. A child of the module is an auxiliary network if

* it is a metric (torchmetrics) or an `AveragedModel`; or
* none of its parameters requires a gradient, it has several layers, and the module without it is
  still a network (a frozen backbone is not auxiliary: without it, only the head remains); or
* it is in eval mode, and a network in training mode takes the same input.

Deeper in a module, a frozen or eval-mode network is auxiliary if a network next to it trains, takes
the same input, and is not a block before or behind it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from torch import nn
from torch.optim.swa_utils import AveragedModel
from torchmetrics import Metric

from lit_finetune.blocks.block import Block, list_blocks
from lit_finetune.freezing.freeze import is_user_frozen
from lit_finetune.freezing.parallel_networks import (
    find_parallel_networks,
    have_same_input,
    input_size,
    layers,
    leaf_modules,
    num_layers,
)
from lit_finetune.modules.fsdp1 import parameters_by_name
from lit_finetune.schedules.phases import Schedule, Selector
from lit_finetune.schedules.selectors import select, selects_by_index


def find_auxiliary_networks(
    model: nn.Module,
    *,
    network: str | None = None,
    is_container: Callable[[nn.Module], bool] = lambda module: False,
) -> tuple[str, ...]:
    """The names of a module's networks other than the one that trains.

    >>> module = nn.ModuleDict({
    ...     "teacher": nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 2)),
    ...     "student": nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)),
    ... })
    >>> _ = module["teacher"].requires_grad_(False)
    >>> find_auxiliary_networks(module)
    ('teacher',)

    Args:
        model: A module before its training.
        network: The name of the child that trains, if it is known.
        is_container: Whether a child may itself contain several networks.
    """
    children = {name: child for name, child in model.named_children() if _has_parameters(child)}
    by_type = [
        name for name, child in children.items() if isinstance(child, Metric | AveragedModel)
    ]
    rest = {name: child for name, child in children.items() if name not in by_type}
    fixed = [
        name
        for name, child in rest.items()
        if name != network
        and (_is_fully_frozen(model, name, child) or _is_eval_copy(child, rest.values()))
    ]
    if network is None:
        fixed = [name for name in fixed if num_layers(rest[name]) > 1]
        trained = [child for name, child in rest.items() if name not in fixed]
        if not _is_network(model, [*by_type, *fixed]):
            fixed = []
        fixed = [name for name in fixed if not _feeds_trained(rest[name], trained)]
    auxiliary = [name for name in children if name in by_type or name in fixed]
    for name, child in rest.items():
        if name not in fixed and is_container(child):
            inner = find_auxiliary_networks(child, is_container=is_container)
            auxiliary += [f"{name}.{each}" for each in inner]
        elif name not in fixed and network is None:
            auxiliary += [f"{name}.{each}" for each in _parallel_within(child)]
    return tuple(auxiliary)


def _parallel_within(model: nn.Module) -> tuple[str, ...]:
    """The auxiliary networks next to one that trains, in a module of any kind."""

    def is_candidate(name: str, child: nn.Module) -> bool:
        return _is_fully_frozen(model, name, child) or not _is_training(child)

    def trains(name: str, child: nn.Module) -> bool:
        return not is_candidate(name, child)

    return find_parallel_networks(model, is_candidate=is_candidate, trains=trains)


@contextmanager
def without_modules(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Remove some submodules from a module, within a context."""
    saved: list[tuple[nn.Module, dict[str, nn.Module | None]]] = []
    for name in names:
        path, _, attribute = name.rpartition(".")
        owner = model.get_submodule(path)
        saved.append((owner, dict(owner._modules)))
        del owner._modules[attribute]
    try:
        yield
    finally:
        for owner, modules in reversed(saved):
            owner._modules.clear()
            owner._modules.update(modules)


def parameters_within(model: nn.Module, names: Sequence[str]) -> tuple[str, ...]:
    """The parameters of some modules, without those shared with the rest of the model."""
    if not names:
        return ()
    with without_modules(model, names):
        shared = {id(parameter) for parameter in model.parameters()}
    named = parameters_by_name(model, remove_duplicate=False)
    return tuple(name for name, parameter in named.items() if id(parameter) not in shared)


def named_auxiliary_parameters(
    schedule: Schedule, blocks: Sequence[Block], all_blocks: Sequence[Block]
) -> frozenset[str]:
    """The parameters of auxiliary networks that a schedule selects.

    Args:
        schedule: The schedule; its selectors by index are ignored.
        blocks: The blocks of the network that trains.
        all_blocks: The blocks of the module with all its networks.
    """
    found: set[str] = set()
    for phase in schedule:
        added = [selector for selection in phase.adds for selector in selection.modules]
        for selector in (*added, *phase.freezes):
            if not selects_by_index(selector) and not _select_or_empty(selector, blocks):
                found.update(_select_or_empty(selector, all_blocks))
    return frozenset(found)


def _select_or_empty(selector: Selector, blocks: Sequence[Block]) -> tuple[str, ...]:
    try:
        return select(selector, blocks)
    except ValueError:
        return ()


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _is_fully_frozen(model: nn.Module, name: str, child: nn.Module) -> bool:
    named = child.named_parameters()
    return all(
        is_user_frozen(model, f"{name}.{attribute}", parameter) for attribute, parameter in named
    )


def _is_training(child: nn.Module) -> bool:
    """Whether a module in a network is in training mode; the mode of containers is ignored."""
    return any(module.training for module in leaf_modules(child))


def _is_eval_copy(child: nn.Module, children: Iterable[nn.Module]) -> bool:
    """Whether a network is in eval mode, and one in training mode takes the same input.

    For example a teacher that runs under `torch.no_grad()`, whatever its `requires_grad`.
    """
    training = [each for each in children if each is not child and each.training]
    return not _is_training(child) and any(have_same_input(child, each) for each in training)


def _is_network(model: nn.Module, without: Sequence[str]) -> bool:
    """Whether a module without some submodules is more than a head."""
    with without_modules(model, without):
        if next(model.parameters(), None) is None:
            return False
        return sum(bool(block.parameters) for block in list_blocks(model)) > 1


def _feeds_trained(fixed: nn.Module, trained: Sequence[nn.Module]) -> bool:
    """Whether a trained network may take the output of a frozen one, by the sizes of their layers.

    A frozen network with the same input as a trained one, such as a copy, does not feed it.
    """
    own_layers, inputs = layers(fixed), [layers(each)[0] for each in trained if layers(each)]
    if not own_layers or any(input_size(own_layers[0]) == input_size(first) for first in inputs):
        return False
    is_map, width = (
        isinstance(own_layers[-1], nn.modules.conv._ConvNd),
        own_layers[-1].weight.shape[0],
    )
    for first in inputs:
        is_linear, size = input_size(first)
        if size == width and (is_linear or is_map):
            return True
        if is_linear and is_map and size % width == 0:  # a flattened map
            return True
    return False

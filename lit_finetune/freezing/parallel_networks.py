"""Networks that run side by side on the same input, told apart by the sizes of their layers."""

from collections.abc import Callable, Collection, Iterator
from typing import Any

from torch import Tensor, nn


def layers(module: nn.Module) -> list[Any]:
    """The linear layers and convolutions of a module, in the order of registration."""
    kinds = nn.Linear | nn.modules.conv._ConvNd
    return [each for each in module.modules() if isinstance(each, kinds)]


def inlet(layer: Any) -> tuple[bool, int]:
    """Whether a layer is linear, and how many features or channels it takes."""
    is_linear = isinstance(layer, nn.Linear)
    return is_linear, layer.in_features if is_linear else layer.in_channels


def num_layers(module: nn.Module) -> int:
    """How many modules hold weights: parameters that are more than a vector."""
    return sum(
        any(parameter.ndim > 1 for parameter in each.parameters(recurse=False))
        for each in module.modules()
    )


def begin_alike(one: nn.Module, other: nn.Module) -> bool:
    """Whether two networks of several layers take the same input, by their first layers."""
    if min(num_layers(one), num_layers(other)) < 2:
        return False
    first = [[inlet(layer) for layer in layers(each)[:1]] for each in (one, other)]
    return first[0] == first[1] != []


def are_parallel(one: nn.Module, other: nn.Module) -> bool:
    """Whether two networks take the same input, and neither could take what the other gives.

    >>> teacher = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 2))
    >>> student = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> block = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
    >>> are_parallel(teacher, student), are_parallel(block, block)
    (True, False)
    """
    if not begin_alike(one, other):
        return False
    begin = layers(one)[0]
    return not any(_can_feed(layers(each)[-1], begin) for each in (one, other))


def parallel_to(
    model: nn.Module,
    *,
    is_aside: Callable[[str, nn.Module], bool],
    trains: Callable[[str, nn.Module], bool],
) -> tuple[str, ...]:
    """The names of networks within a module that run beside one that trains.

    They lie side by side in some module of it, however deep, and begin as the whole does: blocks
    of a network, which may be alike as well, lie one behind the other.

    Args:
        model: It may hold several networks.
        is_aside: Whether a module may be one that runs beside, by its name within the model.
        trains: Whether a module trains.
    """
    found: list[str] = []
    first = layers(model)[:1]
    for path, container in model.named_modules():
        if isinstance(container, nn.Sequential) or any(_within(path, name) for name in found):
            continue
        children = {
            f"{path}.{name}" if path else name: child for name, child in container.named_children()
        }
        networks = {name: child for name, child in children.items() if num_layers(child) > 1}
        if len(networks) < 2:
            continue
        trained = [child for name, child in networks.items() if trains(name, child)]
        found += [
            name
            for name, child in networks.items()
            if is_aside(name, child)
            and [inlet(layer) for layer in layers(child)[:1]] == [inlet(layer) for layer in first]
            and any(are_parallel(child, other) for other in trained if other is not child)
        ]
    return tuple(found)


def side_by_side(model: nn.Module) -> tuple[str, ...]:
    """The names of the networks in a module that run side by side, and require gradients."""

    def trains(name: str, module: nn.Module) -> bool:
        return any(parameter.requires_grad for parameter in module.parameters())

    return parallel_to(model, is_aside=trains, trains=trains)


def without_optimizer(
    model: nn.Module, held: Collection[Tensor], frozen_here: Collection[str]
) -> tuple[str, ...]:
    """The names of networks of which no optimizer holds anything, beside one that trains.

    >>> module = nn.ModuleDict({
    ...     "teacher": nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 2)),
    ...     "student": nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)),
    ... })
    >>> without_optimizer(module, list(module["student"].parameters()), [])
    ('teacher',)

    Args:
        model: A module in training.
        held: The parameters that optimizers hold.
        frozen_here: The parameters that a schedule has frozen by now. An optimizer that holds none
            of these has perhaps been given what requires a gradient, and its choice tells nothing.
    """
    ids = {id(parameter) for parameter in held}
    named = dict(model.named_parameters())
    frozen = [id(named[name]) for name in frozen_here if name in named]

    def trains(name: str, module: nn.Module) -> bool:
        own = {id(parameter) for parameter in module.parameters()}
        is_filtered = not own.isdisjoint(frozen) and (own & ids).isdisjoint(frozen)
        return not own.isdisjoint(ids) and not is_filtered

    def is_aside(name: str, module: nn.Module) -> bool:
        return ids.isdisjoint(map(id, module.parameters()))

    return parallel_to(model, is_aside=is_aside, trains=trains)


def _can_feed(end: Any, begin: Any) -> bool:
    """Whether one layer may take what another one gives: no map comes of a vector."""
    takes_vectors, size = inlet(begin)
    if isinstance(end, nn.Linear):
        return takes_vectors and end.out_features == size
    return bool(end.out_channels == size)


def _within(path: str, name: str) -> bool:
    return f"{path}.".startswith(f"{name}.")


def leaves(module: nn.Module) -> Iterator[nn.Module]:
    """The modules without modules inside."""
    return (each for each in module.modules() if next(each.children(), None) is None)

"""Find networks that run in parallel on the same input, by the sizes of their layers."""

from collections.abc import Callable, Collection, Iterator
from typing import Any

from torch import Tensor, nn


def layers(module: nn.Module) -> list[Any]:
    """The linear layers and convolutions of a module, in the order of registration."""
    types = nn.Linear | nn.modules.conv._ConvNd
    return [each for each in module.modules() if isinstance(each, types)]


def input_size(layer: Any) -> tuple[bool, int]:
    """Whether a layer is linear, and its number of input features or channels."""
    is_linear = isinstance(layer, nn.Linear)
    return is_linear, layer.in_features if is_linear else layer.in_channels


def num_layers(module: nn.Module) -> int:
    """The number of submodules with a parameter of more than one dimension."""
    return sum(
        any(parameter.ndim > 1 for parameter in each.parameters(recurse=False))
        for each in module.modules()
    )


def have_same_input(network: nn.Module, other: nn.Module) -> bool:
    """Whether two networks of several layers take the same input, by their first layers."""
    if min(num_layers(network), num_layers(other)) < 2:
        return False
    first = [[input_size(layer) for layer in layers(each)[:1]] for each in (network, other)]
    return first[0] == first[1] != []


def are_parallel(network: nn.Module, other: nn.Module) -> bool:
    """Whether two networks take the same input, and neither could take the other's output.

    >>> teacher = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 2))
    >>> student = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> block = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
    >>> are_parallel(teacher, student), are_parallel(block, block)
    (True, False)
    """
    if not have_same_input(network, other):
        return False
    first_layer = layers(network)[0]
    return not any(_can_feed(layers(each)[-1], first_layer) for each in (network, other))


def find_parallel_networks(
    model: nn.Module,
    *,
    is_candidate: Callable[[str, nn.Module], bool],
    trains: Callable[[str, nn.Module], bool],
) -> tuple[str, ...]:
    """The names of networks within a module that run in parallel to one that trains.

    They are children of the same module, at any depth, and take the same input as the whole model:
    blocks of a network, which may be similar as well, run one after the other.

    Args:
        model: A module that may contain several networks.
        is_candidate: Whether a module may be such a network, by its name within the model.
        trains: Whether a module trains.
    """
    found: list[str] = []
    first = layers(model)[:1]
    for path, container in model.named_modules():
        if isinstance(container, nn.Sequential) or any(_is_within(path, name) for name in found):
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
            if is_candidate(name, child)
            and [input_size(layer) for layer in layers(child)[:1]]
            == [input_size(layer) for layer in first]
            and any(are_parallel(child, other) for other in trained if other is not child)
        ]
    return tuple(found)


def parallel_trained_networks(model: nn.Module) -> tuple[str, ...]:
    """The names of parallel networks in a module that require gradients."""

    def trains(name: str, module: nn.Module) -> bool:
        return any(parameter.requires_grad for parameter in module.parameters())

    return find_parallel_networks(model, is_candidate=trains, trains=trains)


def parallel_unoptimized_networks(
    model: nn.Module, optimized: Collection[Tensor], frozen_names: Collection[str]
) -> tuple[str, ...]:
    """The names of networks without parameters in an optimizer, parallel to one that trains.

    >>> module = nn.ModuleDict({
    ...     "teacher": nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 2)),
    ...     "student": nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)),
    ... })
    >>> parallel_unoptimized_networks(module, list(module["student"].parameters()), [])
    ('teacher',)

    Args:
        model: A module in training.
        optimized: The parameters that optimizers hold.
        frozen_names: The parameters that a schedule has frozen so far. An optimizer without any of
            them may have been given only parameters with gradients, so it is no evidence.
    """
    ids = {id(parameter) for parameter in optimized}
    named = dict(model.named_parameters())
    frozen = [id(named[name]) for name in frozen_names if name in named]

    def trains(name: str, module: nn.Module) -> bool:
        module_ids = {id(parameter) for parameter in module.parameters()}
        is_filtered = not module_ids.isdisjoint(frozen) and (module_ids & ids).isdisjoint(frozen)
        return not module_ids.isdisjoint(ids) and not is_filtered

    def is_candidate(name: str, module: nn.Module) -> bool:
        return ids.isdisjoint(map(id, module.parameters()))

    return find_parallel_networks(model, is_candidate=is_candidate, trains=trains)


def _can_feed(end: Any, first_layer: Any) -> bool:
    """Whether a layer may take the output of another one: a convolution takes no vectors."""
    takes_vectors, size = input_size(first_layer)
    if isinstance(end, nn.Linear):
        return takes_vectors and end.out_features == size
    return bool(end.out_channels == size)


def _is_within(path: str, name: str) -> bool:
    return f"{path}.".startswith(f"{name}.")


def leaf_modules(module: nn.Module) -> Iterator[nn.Module]:
    """The modules without submodules."""
    return (each for each in module.modules() if next(each.children(), None) is None)

"""Find the layer of a network that is its classifier, from the structure alone."""

import re
from collections.abc import Iterator
from typing import Any, TypeGuard

from torch import nn

Layer = nn.Linear | nn.Conv2d
"""The types of layers that a classifier is made of."""

Candidates = list[tuple[str, Layer]]

_ADVICE = "Say which module it is with `head_name=`."
_AUXILIARY = re.compile(r"(^|\.)aux", re.IGNORECASE)


class NoHeadError(ValueError):
    """A network has no classifier: its output may be features."""


def find_head(network: nn.Module) -> str:
    """The dotted name of the classifier layer.

    This is the one that timm's `pretrained_cfg` names, or else the last `nn.Linear` in order of
    registration, or else a final 1x1 `nn.Conv2d`, as in SqueezeNet. Auxiliary
    heads (`aux1`, `AuxLogits`) do not count, nor do layers of a repeated block.

    >>> find_head(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
    '2'

    Raises:
        NoHeadError: There is no such layer.
        ValueError: Several layers could be it.
    """
    declared = declared_heads(network)
    if declared:
        _check_has_layer(network, declared[0])
        return declared[0]
    is_encoder = hasattr(network, "pretrained_cfg") and not getattr(network, "num_classes", 1)
    candidates = [] if is_encoder else _candidates(network)
    if not candidates:
        raise NoHeadError(
            f"Found no classifier layer in {type(network).__name__}: it has no `nn.Linear`, and "
            f"does not end in a 1x1 `nn.Conv2d`, outside of its repeated blocks. {_ADVICE}"
        )
    parallel = _parallel_layers(candidates)
    if len(parallel) > 1:
        raise ValueError(
            f"{type(network).__name__} has several layers that could be the classifier: "
            f"{', '.join(parallel)}. {_ADVICE}"
        )
    return parallel[0]


def first_layer(module: nn.Module) -> Layer | None:
    """The first `nn.Linear` or `nn.Conv2d` in a module, which may be the module itself."""
    return next(_layers(module), None)


def last_layer(module: nn.Module) -> Layer | None:
    """The last `nn.Linear` or `nn.Conv2d` in a module, which may be the module itself."""
    return next(reversed(list(_layers(module))), None)


def _layers(module: nn.Module) -> Iterator[Layer]:
    return (layer for layer in module.modules() if isinstance(layer, Layer))


def declared_heads(network: nn.Module) -> list[str]:
    """The heads that timm's `pretrained_cfg` names; networks with two heads name both."""
    config = getattr(network, "pretrained_cfg", None) or getattr(network, "default_cfg", None)
    names = config.get("classifier") if isinstance(config, dict) else None
    names = [names] if isinstance(names, str) else list(names or [])
    modules = dict(network.named_modules())
    found = [name for name in names if name in modules]
    return _with_distilled_heads(network, found[0]) if len(found) == 1 else found


def _with_distilled_heads(network: Any, head: str) -> list[str]:
    """A head of a timm network, with the corresponding layer of its other classifiers.

    For some distilled networks (`levit_384_s8`) the `pretrained_cfg` names only one of the two.
    """
    classifiers = network.get_classifier() if hasattr(network, "get_classifier") else ()
    if not isinstance(classifiers, tuple):
        return [head]
    paths = {id(module): path for path, module in network.named_modules()}
    known = [paths[id(module)] for module in classifiers if id(module) in paths]
    rest = [head.removeprefix(path) for path in known if f"{head}.".startswith(f"{path}.")]
    return [path + rest[0] for path in known] if rest else [head]


def all_heads(network: nn.Module, head_name: str) -> tuple[str, ...]:
    """A head with all others that learn the same classes: its partners and the auxiliary heads.

    >>> from torchvision.models import googlenet
    >>> all_heads(googlenet(init_weights=False), "fc")
    ('fc', 'aux1', 'aux2')
    """
    partners = partner_heads(network, head_name)
    return partners + tuple(n for n in auxiliary_heads(network, head_name) if n not in partners)


def partner_heads(network: nn.Module, head_name: str) -> tuple[str, ...]:
    """The heads that compute the network's logits together, the named one included."""
    declared = tuple(declared_heads(network))
    return declared if head_name in declared else (head_name,)


def auxiliary_heads(network: nn.Module, head_name: str) -> tuple[str, ...]:
    """The heads that classify intermediate features in training: `aux1`, `AuxLogits`.

    They are recognised by their names, and by as many outputs as the head has.
    """
    head = last_layer(network.get_submodule(head_name))
    found: list[str] = []
    for name, module in network.named_modules():
        is_inside = any(name.startswith(f"{outer}.") for outer in found)
        if is_inside or not _AUXILIARY.search(name) or head_name.startswith(f"{name}."):
            continue
        layer = last_layer(module)
        if layer and (head is None or layer_sizes(layer)[1] == layer_sizes(head)[1]):
            found.append(name)
    return tuple(found)


def auxiliary_layers(network: nn.Module, head_name: str) -> tuple[str, ...]:
    """The last layers of the auxiliary heads that are not partners of the head."""
    partners = partner_heads(network, head_name)
    names = [name for name in auxiliary_heads(network, head_name) if name not in partners]
    return tuple(_last_layer_name(network, name) for name in names)


def replaced_layers(network: nn.Module, head_name: str) -> tuple[str, ...]:
    """All modules that `replace_head` replaces."""
    return partner_heads(network, head_name) + auxiliary_layers(network, head_name)


def _last_layer_name(network: nn.Module, name: str) -> str:
    """The full name of the last layer in one of a network's modules."""
    module = network.get_submodule(name)
    layer = last_layer(module)
    inner = next((path for path, found in module.named_modules() if found is layer), "")
    return f"{name}.{inner}" if inner else name


def _check_has_layer(network: nn.Module, name: str) -> None:
    module = network.get_submodule(name)
    if last_layer(module) is None:
        raise NoHeadError(
            f"{type(network).__name__} was built without a classifier: `{name}` is of type "
            f"{type(module).__name__}. Build it with one: `backbone_kwargs: {{num_classes: 1000}}`."
        )


def _candidates(network: nn.Module) -> Candidates:
    """The layers that may be the head, in order of registration."""
    layers = [
        (name, module)
        for name, module in network.named_modules()
        if next(module.parameters(recurse=False), None) is not None and not _AUXILIARY.search(name)
    ]
    ends: Candidates = [(name, layer) for name, layer in layers[-1:] if _is_pointwise(layer)]
    linears: Candidates = [(name, m) for name, m in layers if isinstance(m, nn.Linear)]
    for found in (ends, linears):
        unrepeated = [item for item in found if not _in_repeated_block(network, *item)]
        if unrepeated:
            return unrepeated
    return []


def _is_pointwise(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    return isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)


def _in_repeated_block(network: nn.Module, name: str, layer: Layer) -> bool:
    """Whether a layer is part of a block that is repeated, as in a transformer."""
    width = layer_sizes(layer)[1]
    for parent, path in _ancestors(network, name):
        member = network.get_submodule(path)
        num_same_type = sum(type(child) is type(member) for child in parent.children())
        if num_same_type < 2 or isinstance(member, nn.Sequential | Layer):
            continue
        if layer is not last_layer(member):
            return True
        if any(layer_sizes(other)[0] == width for other in _layers(member)):
            return True
    return False


def _ancestors(network: nn.Module, name: str) -> Iterator[tuple[nn.Module, str]]:
    """Each module on the path to `name`: its parent, and its full name."""
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        yield network.get_submodule(".".join(parts[: depth - 1])), ".".join(parts[:depth])


def _parallel_layers(candidates: Candidates) -> list[str]:
    """The last layers with the same input features: more than one if they are parallel."""
    *others, (last_name, last) = candidates
    names = [last_name]
    for name, layer in reversed(others):
        is_parallel = layer_sizes(layer)[0] == layer_sizes(last)[0] != layer_sizes(layer)[1]
        if not is_parallel:
            break
        names.insert(0, name)
    return names


def layer_sizes(layer: Layer) -> tuple[int, int]:
    """The number of input and output features of a layer.

    >>> layer_sizes(nn.Linear(8, 2))
    (8, 2)
    """
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels

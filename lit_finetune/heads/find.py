"""Which layer of a network is its classifier: told from the structure alone."""

import re
from collections.abc import Iterator
from typing import Any, TypeGuard

from torch import nn

Layer = nn.Linear | nn.Conv2d
"""What a classifier is made of."""

Candidates = list[tuple[str, Layer]]

_ADVICE = "Say which module it is with `head_name=`."
_AUXILIARY = re.compile(r"(^|\.)aux", re.IGNORECASE)


class NoHeadError(ValueError):
    """A network has no classifier: what it ends in may be features."""


def find_head(network: nn.Module) -> str:
    """The dotted name of the layer that classifies.

    This is the one that timm's `pretrained_cfg` names, or else the last `nn.Linear` in order of
    registration, or else a 1x1 `nn.Conv2d` that ends the network, as in SqueezeNet. Auxiliary
    heads (`aux1`, `AuxLogits`) do not count, nor do layers of a repeated block.

    >>> find_head(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
    '2'

    Raises:
        NoHeadError: There is no such layer.
        ValueError: There are several with an equal claim.
    """
    declared = declared_heads(network)
    if declared:
        _check_is_there(network, declared[0])
        return declared[0]
    is_encoder = hasattr(network, "pretrained_cfg") and not getattr(network, "num_classes", 1)
    candidates = [] if is_encoder else _candidates(network)
    if not candidates:
        raise NoHeadError(
            f"Found no classifier layer in {type(network).__name__}: it has no `nn.Linear`, and "
            f"does not end in a 1x1 `nn.Conv2d`, outside of its repeated blocks. {_ADVICE}"
        )
    rivals = _rivals(candidates)
    if len(rivals) > 1:
        raise ValueError(
            f"{type(network).__name__} has several layers that could be the classifier: "
            f"{', '.join(rivals)}. {_ADVICE}"
        )
    return rivals[0]


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
    return _with_twins(network, found[0]) if len(found) == 1 else found


def _with_twins(network: Any, head: str) -> list[str]:
    """A head of a network of timm with the same layer of the classifiers beside its own.

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
    """A head with those that learn the same classes: what gives the logits with it, auxiliary ones.

    >>> from torchvision.models import googlenet
    >>> all_heads(googlenet(init_weights=False), "fc")
    ('fc', 'aux1', 'aux2')
    """
    partners = partner_heads(network, head_name)
    return partners + tuple(n for n in auxiliary_heads(network, head_name) if n not in partners)


def partner_heads(network: nn.Module, head_name: str) -> tuple[str, ...]:
    """The heads whose logits make up the network's, with the named one: mostly that one alone."""
    declared = tuple(declared_heads(network))
    return declared if head_name in declared else (head_name,)


def auxiliary_heads(network: nn.Module, head_name: str) -> tuple[str, ...]:
    """The heads that classify along the way in training: `aux1`, `AuxLogits`.

    They are told by their names, and by giving as many scores as the head does.
    """
    head = last_layer(network.get_submodule(head_name))
    found: list[str] = []
    for name, module in network.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if inside or not _AUXILIARY.search(name) or head_name.startswith(f"{name}."):
            continue
        layer = last_layer(module)
        if layer and (head is None or layer_sizes(layer)[1] == layer_sizes(head)[1]):
            found.append(name)
    return tuple(found)


def auxiliary_layers(network: nn.Module, head_name: str) -> tuple[str, ...]:
    """The last layers of the auxiliary heads, where they are not among the heads themselves."""
    partners = partner_heads(network, head_name)
    names = [name for name in auxiliary_heads(network, head_name) if name not in partners]
    return tuple(_last_layer_name(network, name) for name in names)


def replaced_layers(network: nn.Module, head_name: str) -> tuple[str, ...]:
    """All modules that `replace_head` puts new ones in the place of."""
    return partner_heads(network, head_name) + auxiliary_layers(network, head_name)


def _last_layer_name(network: nn.Module, name: str) -> str:
    """The full name of the last layer in one of a network's modules."""
    module = network.get_submodule(name)
    layer = last_layer(module)
    inner = next((path for path, found in module.named_modules() if found is layer), "")
    return f"{name}.{inner}" if inner else name


def _check_is_there(network: nn.Module, name: str) -> None:
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
        alone = [item for item in found if not _in_repeated_block(network, *item)]
        if alone:
            return alone
    return []


def _is_pointwise(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    return isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)


def _in_repeated_block(network: nn.Module, name: str, layer: Layer) -> bool:
    """Whether a layer is a part of one of several blocks alike, as in a transformer."""
    width = layer_sizes(layer)[1]
    for parent, path in _ancestors(network, name):
        member = network.get_submodule(path)
        alike = sum(type(child) is type(member) for child in parent.children())
        if alike < 2 or isinstance(member, nn.Sequential | Layer):
            continue
        if layer is not last_layer(member):
            return True
        if any(layer_sizes(other)[0] == width for other in _layers(member)):
            return True
    return False


def _ancestors(network: nn.Module, name: str) -> Iterator[tuple[nn.Module, str]]:
    """Each module on the way down to `name`, as its parent and its own name."""
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        yield network.get_submodule(".".join(parts[: depth - 1])), ".".join(parts[:depth])


def _rivals(candidates: Candidates) -> list[str]:
    """The last layers that take the same features: more than one if they stand in parallel."""
    *others, (last_name, last) = candidates
    names = [last_name]
    for name, layer in reversed(others):
        parallel = layer_sizes(layer)[0] == layer_sizes(last)[0] != layer_sizes(layer)[1]
        if not parallel:
            break
        names.insert(0, name)
    return names


def layer_sizes(layer: Layer) -> tuple[int, int]:
    """The number of features that go into a layer, and that come out.

    >>> layer_sizes(nn.Linear(8, 2))
    (8, 2)
    """
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels

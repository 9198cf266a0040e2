"""Layers that carry LoRA adapters, told by their structure: the library is not needed for it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn


def adapted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers with adapters beside them, by the names that they have in the model."""
    return {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if name and hasattr(module, "lora_A") and isinstance(base_of(module), nn.Module)
    }


def base_of(layer: nn.Module) -> nn.Module | None:
    """What stands beneath the adapters of a layer; None where there are none."""
    base = layer._modules.get("base_layer")
    return base if isinstance(base, nn.Module) else None


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[dict[str, nn.Module]]:
    """Show a model as it was before it had adapters: the same layers under their own names.

    Yields:
        The layers that have adapters, by name.
    """
    layers = adapted_layers(model)
    for name, layer in layers.items():
        _put(model, name, layer.get_submodule("base_layer"))
    try:
        yield layers
    finally:
        for name, layer in layers.items():
            _put(model, name, layer)


def adapted_names(plain: tuple[str, ...], layers: Mapping[str, nn.Module]) -> tuple[str, ...]:
    """From a plain network's parameters to those of the adapted one: base weights, and adapters.

    >>> layer = nn.ModuleDict({"base_layer": nn.Linear(2, 2), "lora_A": nn.Linear(2, 1)})
    >>> adapted_names(("conv.weight", "fc.weight", "fc.bias"), {"fc": layer})
    ('conv.weight', 'fc.base_layer.weight', 'fc.base_layer.bias', 'fc.lora_A.weight',
     'fc.lora_A.bias')
    """
    names: dict[str, None] = {}
    for name in plain:
        owner, _, _ = name.rpartition(".")
        layer = layers.get(owner)
        inside = [name] if layer is None else [f"{owner}.{n}" for n, _ in layer.named_parameters()]
        names.update(dict.fromkeys(inside))
    return tuple(names)


def is_adapter(parameter: str, layers: Mapping[str, nn.Module]) -> bool:
    """Whether a parameter of an adapted network is one of an adapter."""
    return any(
        parameter.startswith(f"{name}.") and not parameter.startswith(f"{name}.base_layer.")
        for name in layers
    )


def _put(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Set a layer in its place; the order of the modules around it stays."""
    path, _, own = name.rpartition(".")
    model.get_submodule(path)._modules[own] = layer

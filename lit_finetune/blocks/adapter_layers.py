"""Layers with LoRA adapters, recognised by their structure, without importing PEFT."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn


def adapted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that have adapters, by their names in the model."""
    return {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if name and hasattr(module, "lora_A") and isinstance(base_layer(module), nn.Module)
    }


def base_layer(layer: nn.Module) -> nn.Module | None:
    """The original layer below the adapters of a layer; None if it has no adapters."""
    base = layer._modules.get("base_layer")
    return base if isinstance(base, nn.Module) else None


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[dict[str, nn.Module]]:
    """Give each adapted layer's name back to its original layer, within a context.

    Yields:
        The layers that have adapters, by name.
    """
    layers = adapted_layers(model)
    for name, layer in layers.items():
        _set_submodule(model, name, layer.get_submodule("base_layer"))
    try:
        yield layers
    finally:
        for name, layer in layers.items():
            _set_submodule(model, name, layer)


def adapted_names(plain: tuple[str, ...], layers: Mapping[str, nn.Module]) -> tuple[str, ...]:
    """Replace each parameter of an adapted layer by its base weights and adapters, by name.

    >>> layer = nn.ModuleDict({"base_layer": nn.Linear(2, 2), "lora_A": nn.Linear(2, 1)})
    >>> adapted_names(("conv.weight", "fc.weight", "fc.bias"), {"fc": layer})
    ('conv.weight', 'fc.base_layer.weight', 'fc.base_layer.bias', 'fc.lora_A.weight',
     'fc.lora_A.bias')
    """
    names: dict[str, None] = {}
    for name in plain:
        owner, _, _ = name.rpartition(".")
        layer = layers.get(owner)
        renamed = [name] if layer is None else [f"{owner}.{n}" for n, _ in layer.named_parameters()]
        names.update(dict.fromkeys(renamed))
    return tuple(names)


def is_adapter(parameter: str, layers: Mapping[str, nn.Module]) -> bool:
    """Whether a parameter of an adapted network is one of an adapter."""
    return any(
        parameter.startswith(f"{name}.") and not parameter.startswith(f"{name}.base_layer.")
        for name in layers
    )


def _set_submodule(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Replace a submodule; the order of the modules around it stays."""
    path, _, own = name.rpartition(".")
    model.get_submodule(path)._modules[own] = layer

"""Low-rank adapters (LoRA) of a network's layers, trained instead of its weights."""

import copy
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from lit_finetune._errors import nearest
from lit_finetune.backbones.input_adaptation import input_layer
from lit_finetune.blocks.adapter_layers import adapted_layers
from lit_finetune.blocks.block import list_blocks
from lit_finetune.images.data_config import DataConfig
from lit_finetune.modules.dry_run import dry_run

_UNSUPPORTED_CONV = "it is a grouped, a dilated or an otherwise padded convolution"


@dataclass(frozen=True, kw_only=True)
class Lora:
    """The configuration of low-rank adapters (LoRA, arXiv 2106.09685)."""

    r: int = 8
    """The rank of the adapters."""
    alpha: float = 16.0
    """An adapter's output is scaled by `alpha / r`."""
    dropout: float = 0.0
    """Dropout probability of an adapter's input."""
    target: list[str] | None = None
    """The layers to adapt: names, last parts of names (`qkv`), globs, `re:` with a regular
    expression, or modules that contain them; by default all linear layers and convolutions except
    the first layer and the head."""

    def __post_init__(self) -> None:
        problems = (
            []
            if isinstance(self.r, int) and self.r >= 1
            else [f"`r` is a rank from 1 on, but got {self.r}"]
        )
        if not 0 < self.alpha < math.inf:
            problems.append(f"`alpha` must be positive and finite, but got {self.alpha}")
        if not 0 <= self.dropout < 1:
            problems.append(f"`dropout` is a probability below 1, but got {self.dropout}")
        if isinstance(self.target, str) or self.target == []:
            problems.append(f"`target` is a list of patterns, but got {self.target!r}")
        if problems:
            raise ValueError(f"`lora` is invalid: {'; '.join(problems)}.")


def read_lora(value: "Lora | Mapping[str, Any] | None") -> Lora | None:
    """The configuration of adapters, also from a mapping.

    >>> read_lora({"r": 4}).r
    4
    """
    if value is None or isinstance(value, Lora):
        return value
    if not isinstance(value, Mapping):
        raise ValueError(f"`lora` is a `Lora` or a mapping, but got a {type(value).__name__}.")
    names = [field.name for field in fields(Lora)]
    for key in value:
        if key not in names:
            hint = nearest(str(key), names)
            raise ValueError(f"`lora` has no {key!r}.{hint} It has: {', '.join(names)}.")
    return Lora(**value)


def add_lora(
    network: nn.Module, lora: Lora, *, head_name: str, data_config: DataConfig
) -> tuple[str, ...]:
    """Add adapters to layers of a network, and freeze all other parameters except the head's.

    The network's output does not change: an adapter's initial output is 0.

    Args:
        network: It is changed in place.
        lora: The configuration of the adapters.
        head_name: The name of the head, which has no adapters: its own weights train.
        data_config: The images that the network takes; it runs on blank ones, to see which layers
            it calls.

    Returns:
        The names of the layers with adapters.

    Raises:
        ModuleNotFoundError: Hugging Face's peft is not installed.
        ValueError: The network has adapters already, or a pattern matches no adaptable layer.
    """
    peft = _import_peft()
    if adapted_layers(network):
        raise ValueError(
            f"{type(network).__name__} has adapters already: leave `lora` out, or merge them first."
        )
    layers = _adaptable(network, head_name, data_config)
    names = _select_targets(network, layers, lora.target)
    config = peft.LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules="|".join(map(re.escape, names)),
        bias="none",
    )
    peft.inject_adapter_in_model(config, network)
    if isinstance(vars(network).get("peft_config"), dict):
        del network.peft_config
    for name in names:
        _copy_attributes(network.get_submodule(name), network.get_submodule(f"{name}.base_layer"))
    dry_run(network, data_config, purpose="to see whether it works with adapters (`lora`)")
    free = {name for block in list_blocks(network, head_name) for name in block.free}
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in free)
    return tuple(names)


def _copy_attributes(adapted: nn.Module, base: nn.Module) -> None:
    """Copy the attributes of the base layer to the adapted one: some networks read its `stride`."""
    adapted.train(base.training)
    for name, value in vars(base).items():
        if not name.startswith("_") and not hasattr(adapted, name):
            setattr(adapted, name, value)


def merge_adapters(network: nn.Module) -> nn.Module:
    """A copy of an adapted network with the adapters merged into its weights.

    Its logits are the same except for rounding; its parameters have their original names.

    Raises:
        ValueError: The network has no adapters.
    """
    if not adapted_layers(network):
        raise ValueError(f"{type(network).__name__} has no adapters that could be merged.")
    copied = copy.deepcopy(network)
    layers: Mapping[str, Any] = adapted_layers(copied)
    for layer in {id(layer): layer for layer in layers.values()}.values():
        layer.merge(safe_merge=True)
    for name, layer in layers.items():
        path, _, attribute = name.rpartition(".")
        copied.get_submodule(path)._modules[attribute] = layer.base_layer
    return copied.requires_grad_(True)


@dataclass(frozen=True, slots=True)
class _AdaptableLayers:
    """The layers of a network that can have adapters, and the reasons why others cannot."""

    names: tuple[str, ...]
    default: tuple[str, ...]
    """Those that are adapted by default, without `target`."""
    reasons: Mapping[str, str]


def _adaptable(network: nn.Module, head_name: str, config: DataConfig) -> _AdaptableLayers:
    called = _called_modules(network, config)
    first = input_layer(network)
    heads = tuple(f"{module}." for module in list_blocks(network, head_name)[-1].modules)
    names: list[str] = []
    reasons: dict[str, str] = {}
    in_encoder = tuple(
        f"{name}." if name else ""
        for name, module in network.named_modules()
        if isinstance(module, nn.TransformerEncoderLayer)
    )
    for name, module in network.named_modules():
        if next(module.parameters(recurse=False), None) is None or not name:
            continue
        reason = _unadaptable_reason(module)
        if f"{name}.".startswith(heads):
            reason = "it is in the head, which trains itself"
        elif name.startswith(in_encoder):
            reason = "`nn.TransformerEncoderLayer` passes its layers by in evaluation"
        elif not reason and id(module) not in called:
            reason = "the network uses its weight and never calls it"
        if reason:
            reasons[name] = reason
        else:
            names.append(name)
    default = [name for name in names if first is None or name != first[0]]
    return _AdaptableLayers(tuple(names), tuple(default), reasons)


def _unadaptable_reason(module: nn.Module) -> str:
    """The reason why a layer cannot have an adapter; empty if it can."""
    if isinstance(module, nn.MultiheadAttention):
        return "the adapter for `nn.MultiheadAttention` would move its frozen weights"
    if not isinstance(module, nn.Linear | nn.Conv2d):
        return f"it is of type {type(module).__name__}, no linear layer and no convolution"
    kind = nn.Linear if isinstance(module, nn.Linear) else nn.Conv2d
    is_plain = type(module).forward is kind.forward and "weight" in module._parameters
    if not is_plain or (kind is nn.Conv2d and type(module) is not nn.Conv2d):
        return f"{type(module).__name__} may use its weight otherwise than {kind.__name__} does"
    return "" if isinstance(module, nn.Linear) or _is_supported_conv(module) else _UNSUPPORTED_CONV


def _is_supported_conv(layer: nn.Conv2d) -> bool:
    """Whether peft's adapter supports all options of a convolution."""
    return layer.groups == 1 and layer.dilation == (1, 1) and layer.padding_mode == "zeros"


def _called_modules(network: nn.Module, config: DataConfig) -> set[int]:
    """The modules that a forward of the network calls, by `id`."""
    called: set[int] = set()
    hooks = [
        module.register_forward_pre_hook(lambda module, args: called.add(id(module)))
        for module in network.modules()
    ]
    try:
        with torch.compiler.set_stance("force_eager"):
            dry_run(network, config, purpose="to find the layers for `lora`")
    finally:
        for hook in hooks:
            hook.remove()
    return called


def _select_targets(
    network: nn.Module, layers: _AdaptableLayers, patterns: Sequence[str] | None
) -> list[str]:
    """The names of the layers that the patterns match, in the network's order."""
    if patterns is None:
        if not layers.default:
            raise ValueError(f"`lora` finds no layer to adapt. {_first_reasons(layers.reasons)}")
        return list(layers.default)
    chosen: set[str] = set()
    problems: list[str] = []
    for pattern in patterns:
        found = {name for name in layers.names if _matches(pattern, name)}
        chosen |= found
        if not found:
            problems.append(f"{pattern!r} matches no layer that can be adapted.")
            reasons = {n: why for n, why in layers.reasons.items() if _matches(pattern, n)}
            parts = [part for name in layers.names for part in (name, name.split(".")[-1])]
            problems[-1] += f" {_first_reasons(reasons)}" if reasons else nearest(pattern, parts)
    if problems:
        raise ValueError("`lora`'s `target` cannot be:\n  " + "\n  ".join(problems))
    return [name for name in layers.names if name in chosen]


def _matches(pattern: str, name: str) -> bool:
    """Whether a pattern matches a layer's name, its last part, or a parent module's name.

    >>> [_matches(pattern, "blocks.0.qkv") for pattern in ("qkv", "blocks.*", "blocks.0", "re:.*0")]
    [True, True, True, True]
    """
    parts = name.split(".")
    paths = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
    if pattern.startswith("re:"):
        return any(re.fullmatch(pattern[3:], path) for path in paths)
    return parts[-1] == pattern or any(fnmatchcase(path, pattern) for path in paths)


def _first_reasons(reasons: Mapping[str, str]) -> str:
    """The first few layers that cannot have an adapter, with the reasons.

    >>> _first_reasons({"fc": "it is in the head"})
    '`fc`: it is in the head.'
    """
    return " ".join(f"`{name}`: {reason}." for name, reason in list(reasons.items())[:3])


def _import_peft() -> Any:
    try:
        import peft
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "`lora` needs Hugging Face's peft: pip install 'lit-finetune[peft]'", name="peft"
        ) from error
    return peft

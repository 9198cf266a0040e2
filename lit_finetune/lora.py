"""Low-rank adapters beside a network's layers, trained in the place of its weights (LoRA)."""

import copy
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

_NOT_SIMPLE = "it is a grouped, a dilated or an otherwise padded convolution"


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Adapters of low rank beside some layers (LoRA, arXiv 2106.09685)."""

    r: int = 8
    """The rank: how many directions an adapter has."""
    alpha: float = 16.0
    """What is added is scaled by `alpha / r`."""
    dropout: float = 0.0
    """Probability of dropping a feature on its way into an adapter."""
    target: list[str] | None = None
    """The layers, by name, last part of a name (`qkv`), glob, `re:` and a regular expression, or
    the module that they are in; by default all linear layers and convolutions but the first layer
    and the head."""

    def __post_init__(self) -> None:
        problems = [] if self.r >= 1 else [f"`r` is a rank from 1 on, but got {self.r}"]
        if not self.alpha > 0:
            problems.append(f"`alpha` must be positive, but got {self.alpha}")
        if not 0 <= self.dropout < 1:
            problems.append(f"`dropout` is a probability below 1, but got {self.dropout}")
        if isinstance(self.target, str) or self.target == []:
            problems.append(f"`target` is a list of patterns, but got {self.target!r}")
        if problems:
            raise ValueError(f"`lora` cannot be: {'; '.join(problems)}.")


def read_lora(given: "Lora | Mapping[str, Any] | None") -> Lora | None:
    """The adapters that a user asks for, who may write them as a mapping.

    >>> read_lora({"r": 4}).r
    4
    """
    if given is None or isinstance(given, Lora):
        return given
    if not isinstance(given, Mapping):
        raise ValueError(f"`lora` is a `Lora` or a mapping, but got a {type(given).__name__}.")
    known = [field.name for field in fields(Lora)]
    for key in given:
        if key not in known:
            hint = nearest(str(key), known)
            raise ValueError(f"`lora` has no {key!r}.{hint} It has: {', '.join(known)}.")
    return Lora(**given)


def add_lora(
    network: nn.Module, lora: Lora, *, head_name: str, data_config: DataConfig
) -> tuple[str, ...]:
    """Put adapters beside layers of a network, and freeze all else but the head for good.

    What the network gives is the same before and after: an adapter starts with nothing to add.

    Args:
        network: It is changed.
        lora: Which adapters.
        head_name: The name of the head, which gets none: it trains itself.
        data_config: What pictures the network takes; it sees one, to tell which layers it calls.

    Returns:
        The names of the layers that have adapters now.

    Raises:
        ModuleNotFoundError: Hugging Face's peft is not installed.
        ValueError: There are adapters already, or a pattern matches no layer that can have one.
    """
    peft = _import_peft()
    if adapted_layers(network):
        raise ValueError(
            f"{type(network).__name__} has adapters already: leave `lora` out, or merge them first."
        )
    layers = _adaptable(network, head_name, data_config)
    names = _targets(network, layers, lora.target)
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
        _resemble(network.get_submodule(name), network.get_submodule(f"{name}.base_layer"))
    dry_run(network, data_config, purpose="to see whether it works with adapters (`lora`)")
    free = {name for block in list_blocks(network, head_name) for name in block.free}
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in free)
    return tuple(names)


def _resemble(adapted: nn.Module, base: nn.Module) -> None:
    """Let a layer with adapters tell what its base would: some networks ask for its `stride`."""
    adapted.train(base.training)
    for name, value in vars(base).items():
        if not name.startswith("_") and not hasattr(adapted, name):
            setattr(adapted, name, value)


def merged(network: nn.Module) -> nn.Module:
    """A copy of an adapted network with the adapters merged into its weights.

    It gives the same logits but for rounding, under the names that the network had without.

    Raises:
        ValueError: The network has no adapters.
    """
    if not adapted_layers(network):
        raise ValueError(f"{type(network).__name__} has no adapters that could be merged.")
    plain = copy.deepcopy(network)
    layers: Mapping[str, Any] = adapted_layers(plain)
    for layer in {id(layer): layer for layer in layers.values()}.values():
        layer.merge(safe_merge=True)
    for name, layer in layers.items():
        path, _, own = name.rpartition(".")
        plain.get_submodule(path)._modules[own] = layer.base_layer
    return plain.requires_grad_(True)


@dataclass(frozen=True, slots=True)
class _Layers:
    """The layers of a network that can have adapters, and why others cannot."""

    names: tuple[str, ...]
    default: tuple[str, ...]
    """Those that get one where no `target` is given."""
    reasons: Mapping[str, str]


def _adaptable(network: nn.Module, head_name: str, config: DataConfig) -> _Layers:
    called = _called(network, config)
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
        reason = _why_not(module)
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
    return _Layers(tuple(names), tuple(default), reasons)


def _why_not(module: nn.Module) -> str:
    """Why a layer can have no adapter, if it cannot."""
    if isinstance(module, nn.MultiheadAttention):
        return "the adapter for `nn.MultiheadAttention` would move its frozen weights"
    if not isinstance(module, nn.Linear | nn.Conv2d):
        return f"it is of type {type(module).__name__}, no linear layer and no convolution"
    kind = nn.Linear if isinstance(module, nn.Linear) else nn.Conv2d
    is_plain = type(module).forward is kind.forward and "weight" in module._parameters
    if not is_plain or (kind is nn.Conv2d and type(module) is not nn.Conv2d):
        return f"{type(module).__name__} may use its weight otherwise than {kind.__name__} does"
    return "" if isinstance(module, nn.Linear) or _is_simple(module) else _NOT_SIMPLE


def _is_simple(layer: nn.Conv2d) -> bool:
    """Whether a convolution has none of what peft's beside it would leave out."""
    return layer.groups == 1 and layer.dilation == (1, 1) and layer.padding_mode == "zeros"


def _called(network: nn.Module, config: DataConfig) -> set[int]:
    """The modules that are called when the network sees a picture, by identity."""
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


def _targets(network: nn.Module, layers: _Layers, patterns: Sequence[str] | None) -> list[str]:
    """The names of the layers that the patterns mean, in the network's order."""
    if patterns is None:
        if not layers.default:
            raise ValueError(f"`lora` finds no layer that it could adapt. {_some(layers.reasons)}")
        return list(layers.default)
    chosen: set[str] = set()
    problems: list[str] = []
    for pattern in patterns:
        found = {name for name in layers.names if _matches(pattern, name)}
        chosen |= found
        if not found:
            problems.append(f"{pattern!r} matches no layer that could be adapted.")
            reasons = {n: why for n, why in layers.reasons.items() if _matches(pattern, n)}
            parts = [part for name in layers.names for part in (name, name.split(".")[-1])]
            problems[-1] += f" {_some(reasons)}" if reasons else nearest(pattern, parts)
    if problems:
        raise ValueError("`lora`'s `target` cannot be:\n  " + "\n  ".join(problems))
    return [name for name in layers.names if name in chosen]


def _matches(pattern: str, name: str) -> bool:
    """Whether a pattern means a layer: its name, the last part of it, or a module around it.

    >>> [_matches(pattern, "blocks.0.qkv") for pattern in ("qkv", "blocks.*", "blocks.0", "re:.*0")]
    [True, True, True, True]
    """
    parts = name.split(".")
    paths = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
    if pattern.startswith("re:"):
        return any(re.fullmatch(pattern[3:], path) for path in paths)
    return parts[-1] == pattern or any(fnmatchcase(path, pattern) for path in paths)


def _some(reasons: Mapping[str, str]) -> str:
    """The first few layers that cannot have an adapter, and why.

    >>> _some({"fc": "it is in the head"})
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

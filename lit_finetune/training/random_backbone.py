"""Detect frozen layers with random weights, on which a head would learn from noise."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from lit_finetune.backbones.position_embeddings import is_positional
from lit_finetune.blocks.adapter_layers import without_adapters
from lit_finetune.blocks.norm_layers import is_norm
from lit_finetune.heads.untrained import begins_with
from lit_finetune.modules.compiled import plain_name

_MAX_ELEMENTS = 64
"""The elements of each parameter that are compared."""
_WEIGHTS_ARGUMENT = re.compile(
    r"(?!init)(\w*_)?weights(_\w+)?|pretrained(_backbone)?|(\w*_)?(checkpoint|ckpt)(_path|_file)?|"
    r"(\w*_)?state_dict"
)
"""The names of constructor arguments for pretrained weights."""


@dataclass(frozen=True, slots=True)
class RandomLayers:
    """Layers of a backbone with random weights."""

    name: str
    """The name of the backbone."""
    initial_values: Mapping[str, Tensor]
    """The first elements of each of their parameters, by names without `_orig_mod`."""
    is_whole_backbone: bool
    """Whether they are the whole backbone, not only the layers that a weights file lacks."""

    def unchanged_in(self, network: nn.Module) -> set[str]:
        """The parameters that have not changed since; without sharded ones."""
        current = _parameters_by_name(network)
        return {
            n
            for n, initial in self.initial_values.items()
            if n in current and begins_with(current[n], initial)
        }

    def is_unchanged_in(self, network: nn.Module) -> bool:
        """Whether they are the whole backbone, and none has changed."""
        return self.is_whole_backbone and len(self.unchanged_in(network)) == len(
            self.initial_values
        )


def random_backbone(
    network: nn.Module,
    head_name: str,
    *,
    backbone: object,
    name: str = "",
    kwargs: Mapping[str, Any] | None = None,
) -> RandomLayers | None:
    """Record a backbone with random weights; None if it may have been trained.

    >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    >>> random_backbone(network, "2", backbone=network) is None
    False
    >>> network[1].running_mean += 1  # it was trained
    >>> random_backbone(network, "2", backbone=network) is None
    True

    Args:
        network: A network that was built without published weights or a file.
        head_name: The name of its head.
        backbone: The user's argument. A user's network is judged by its norms, if it has any.
        name: The name of the backbone.
        kwargs: The arguments that it was built with.
    """
    norms = [m for m in network.modules() if _shows_training(m)]
    is_trained = any(map(_is_trained, norms)) or any(
        value for key, value in (kwargs or {}).items() if _WEIGHTS_ARGUMENT.fullmatch(key)
    )
    if is_trained or (isinstance(backbone, nn.Module) and not norms):
        return None
    return _record(
        network, head_name, lambda path, parameter: True, name=name, is_whole_backbone=True
    )


def unfilled_layers(
    network: nn.Module, head_name: str, *, filled: Collection[str], name: str = ""
) -> RandomLayers | None:
    """Record the layers of a backbone that a weights file has not filled; None if it filled all.

    >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 4), nn.Linear(4, 2))
    >>> list(unfilled_layers(network, "2", filled={"0.weight"}).initial_values)
    ['1.weight']

    Args:
        network: A network with random weights that was then filled from the file.
        head_name: The name of its head.
        filled: The names of the tensors that the file filled, without `_orig_mod`.
        name: The name of the backbone.
    """
    filled_names = set(filled)
    random_layers = _record(
        network,
        head_name,
        lambda path, parameter: path not in filled_names and _is_weight(path, parameter),
        name=name,
        is_whole_backbone=False,
    )
    return random_layers if random_layers.initial_values else None


def is_never_trained(random: RandomLayers | None, network: nn.Module) -> bool:
    """Whether a whole network is unchanged, and has norms that training would have changed.

    >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    >>> is_never_trained(random_backbone(network, "2", backbone=network), network)
    True
    """
    has_evidence = any(map(_shows_training, network.modules()))
    return random is not None and has_evidence and random.is_unchanged_in(network)


def frozen_share(
    network: nn.Module, head_name: str, *, optimised: Collection[nn.Parameter] | None = None
) -> float:
    """The share of frozen parameters before the head, without position embeddings.

    >>> network = nn.Sequential(nn.Linear(3, 1), nn.Linear(1, 2))
    >>> _ = network[0].bias.requires_grad_(False)
    >>> frozen_share(network, "1")
    0.25

    Args:
        network: A backbone.
        head_name: The name of its head.
        optimised: The parameters that optimizers hold; None if unknown.
    """
    trains = _trains(optimised)
    sizes = {
        name: (parameter.numel(), trains(parameter))
        for name, parameter in _parameters_by_name(network).items()
        if not name.startswith(f"{plain_name(head_name)}.") and not is_positional(name)
    }
    frozen = sum(size for size, trains in sizes.values() if not trains)
    return frozen / max(1, sum(size for size, _ in sizes.values()))


def random_layers_warning(
    random: RandomLayers,
    model: Any,
    *,
    is_probed: bool = False,
    optimizers: Sequence[Optimizer] = (),
) -> str | None:
    """The warning about frozen random layers; None if there are none.

    Args:
        random: The random layers.
        model: A module with attributes `backbone` and `head_name`.
        is_probed: Whether a head will be fitted to its features.
        optimizers: The optimizers, if they exist already.
    """
    groups = [group for each in optimizers for group in each.param_groups]
    optimised = [parameter for group in groups for parameter in group["params"]] or None
    unchanged = random.unchanged_in(model.backbone)
    trains = _trains(() if is_probed else optimised)
    frozen = [
        path
        for path, parameter in _parameters_by_name(model.backbone).items()
        if path in unchanged and _is_weight(path, parameter) and not trains(parameter)
    ]
    if not frozen:
        return None
    weights = "`weights`, on the command line `--model.weights`"
    if random.is_unchanged_in(model.backbone):
        share = frozen_share(model.backbone, model.head_name, optimised=optimised)
        use = (
            f"{share:.0%} of it is frozen" if share else "a head is fitted to its features at once"
        )
        return (
            f"The backbone {random.name} has random weights, and {use}: its features mean"
            f" nothing. Give pretrained weights ({weights}: `DEFAULT`, `pretrained` or a"
            " file), or train all of it from the start."
        )
    return (
        f"Layers of the backbone {random.name} have random weights, which nothing has filled, and"
        f" do not train, {len(frozen)}: {', '.join(frozen[:3])}{', …' if len(frozen) > 3 else ''}."
        f" Their outputs mean nothing. Give weights that have them ({weights}), or train"
        " them from the start."
    )


def _record(
    network: nn.Module,
    head_name: str,
    is_included: Callable[[str, nn.Parameter], bool],
    *,
    name: str,
    is_whole_backbone: bool,
) -> RandomLayers:
    initial_values = {
        path: parameter.detach().flatten()[:_MAX_ELEMENTS].cpu().clone()
        for path, parameter in _parameters_by_name(network).items()
        if not path.startswith(f"{plain_name(head_name)}.")
        and not parameter.is_meta
        and is_included(path, parameter)
    }
    return RandomLayers(name, initial_values, is_whole_backbone)


def _parameters_by_name(network: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters by name, without adapters and the parts that `torch.compile` adds."""
    with without_adapters(network):
        return {plain_name(path): parameter for path, parameter in network.named_parameters()}


def _trains(optimised: Collection[nn.Parameter] | None) -> Callable[[nn.Parameter], bool]:
    optimised_ids = None if optimised is None else set(map(id, optimised))
    return lambda parameter: (
        parameter.requires_grad and (optimised_ids is None or id(parameter) in optimised_ids)
    )


def _is_weight(path: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is a layer's weight: other random parameters do little harm."""
    return parameter.ndim > 1 and not is_positional(path) and "token" not in path


def _shows_training(module: nn.Module) -> bool:
    """Whether a module is a norm that training would have changed."""
    has_statistics = isinstance(module, _NormBase) and module.running_mean is not None
    return has_statistics or (is_norm(module) and _scale(module) is not None)


def _is_trained(norm: nn.Module) -> bool:
    if isinstance(norm, _NormBase) and norm.running_mean is not None:
        pairs = ((norm.get_buffer("running_mean"), 0), (norm.get_buffer("running_var"), 1))
        return any(not t.is_meta and bool(torch.any(t != value)) for t, value in pairs)
    weight = _scale(norm)
    # A constructor may set another value, but the same for all.
    return weight is not None and bool((weight != weight[0]).any())


def _scale(norm: nn.Module) -> Tensor | None:
    """The scale of a norm, if it has several elements."""
    weight = norm._parameters.get("weight")
    is_readable = weight is not None and not weight.is_meta and weight.numel() > 1
    return weight.detach().flatten() if weight is not None and is_readable else None

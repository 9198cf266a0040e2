"""Whether what stays frozen of a backbone has learnt nothing: a head on it learns from noise."""

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

_NUMBERS = 64
"""How many numbers of each parameter are kept to compare."""
_OF_WEIGHTS = re.compile(
    r"(?!init)(\w*_)?weights(_\w+)?|pretrained(_backbone)?|(\w*_)?(checkpoint|ckpt)(_path|_file)?|"
    r"(\w*_)?state_dict"
)
"""What constructors call the weights that a network begins with."""


@dataclass(frozen=True, slots=True)
class RandomLayers:
    """Layers of a backbone with weights that were drawn at random."""

    name: str
    """What the backbone is called."""
    begins: Mapping[str, Tensor]
    """The first numbers of each of their parameters, by the network's names without `_orig_mod`."""
    is_whole: bool
    """Whether they are the whole backbone, and not what a weights file has left."""

    def unchanged_in(self, network: nn.Module) -> set[str]:
        """The parameters that have not changed since; none that cannot be seen whole."""
        now = _named(network)
        return {n for n, begin in self.begins.items() if n in now and begins_with(now[n], begin)}

    def is_unchanged_in(self, network: nn.Module) -> bool:
        """Whether they are the whole backbone, and all are as they were."""
        return self.is_whole and len(self.unchanged_in(network)) == len(self.begins)


def random_backbone(
    network: nn.Module,
    head_name: str,
    *,
    backbone: object,
    name: str = "",
    kwargs: Mapping[str, Any] | None = None,
) -> RandomLayers | None:
    """Take note of a backbone that was drawn at random; None where it may have been trained.

    >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    >>> random_backbone(network, "2", backbone=network) is None
    False
    >>> network[1].running_mean += 1  # it has seen pictures
    >>> random_backbone(network, "2", backbone=network) is None
    True

    Args:
        network: It was built without weights of a file, or published ones.
        head_name: The name of its head.
        backbone: As it was given. Of a network of the user's own its norms tell, if it has any.
        name: What the backbone is called.
        kwargs: What it was built with.
    """
    norms = [m for m in network.modules() if _is_telling(m)]
    has_learnt = any(map(_has_learnt, norms)) or any(
        value for key, value in (kwargs or {}).items() if _OF_WEIGHTS.fullmatch(key)
    )
    if has_learnt or (isinstance(backbone, nn.Module) and not norms):
        return None
    return _noted(network, head_name, lambda path, parameter: True, name=name, is_whole=True)


def unfilled_layers(
    network: nn.Module, head_name: str, *, filled: Collection[str], name: str = ""
) -> RandomLayers | None:
    """Take note of what a weights file has not filled of a backbone; None if it has filled all.

    >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 4), nn.Linear(4, 2))
    >>> list(unfilled_layers(network, "2", filled={"0.weight"}).begins)
    ['1.weight']

    Args:
        network: It was drawn at random, and then filled.
        head_name: The name of its head.
        filled: The names of the tensors that the file had, without `_orig_mod`.
        name: What the backbone is called.
    """
    known = set(filled)
    noted = _noted(
        network,
        head_name,
        lambda path, parameter: path not in known and _is_weight(path, parameter),
        name=name,
        is_whole=False,
    )
    return noted if noted.begins else None


def was_never_trained(random: RandomLayers | None, network: nn.Module) -> bool:
    """Whether a whole network is as it was drawn, and has norms that a training would have changed.

    >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    >>> was_never_trained(random_backbone(network, "2", backbone=network), network)
    True
    """
    has_evidence = any(map(_is_telling, network.modules()))
    return random is not None and has_evidence and random.is_unchanged_in(network)


def frozen_share(
    network: nn.Module, head_name: str, *, optimised: Collection[nn.Parameter] | None = None
) -> float:
    """The share of the parameters before the head that do not train, embeddings of positions apart.

    >>> network = nn.Sequential(nn.Linear(3, 1), nn.Linear(1, 2))
    >>> _ = network[0].bias.requires_grad_(False)
    >>> frozen_share(network, "1")
    0.25

    Args:
        network: A backbone.
        head_name: The name of its head.
        optimised: What an optimizer moves; None where that is not known.
    """
    trains = _trains(optimised)
    sizes = {
        name: (parameter.numel(), trains(parameter))
        for name, parameter in _named(network).items()
        if not name.startswith(f"{plain_name(head_name)}.") and not is_positional(name)
    }
    frozen = sum(size for size, trains in sizes.values() if not trains)
    return frozen / max(1, sum(size for size, _ in sizes.values()))


def warning_of_random(
    random: RandomLayers,
    model: Any,
    *,
    is_probed: bool = False,
    optimizers: Sequence[Optimizer] = (),
) -> str | None:
    """What is the matter with a backbone that is random, and what to do; None if nothing is.

    Args:
        random: The layers as they were drawn.
        model: The module that has the backbone as `backbone`, with a head of the name `head_name`.
        is_probed: Whether a head is fitted to its features at once.
        optimizers: Those that move it, where they are made already.
    """
    groups = [group for each in optimizers for group in each.param_groups]
    optimised = [parameter for group in groups for parameter in group["params"]] or None
    unchanged = random.unchanged_in(model.backbone)
    trains = _trains(() if is_probed else optimised)
    frozen = [
        path
        for path, parameter in _named(model.backbone).items()
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
            f"The backbone {random.name} has random weights, and {use}: what the head learns from"
            f" means nothing. Give pretrained weights ({weights}: `DEFAULT`, `pretrained` or a"
            " file), or train all of it from the start."
        )
    return (
        f"Layers of the backbone {random.name} have random weights, which nothing has filled, and"
        f" do not train, {len(frozen)}: {', '.join(frozen[:3])}{', …' if len(frozen) > 3 else ''}."
        f" What comes through them means nothing. Give weights that have them ({weights}), or train"
        " them from the start."
    )


def _noted(
    network: nn.Module,
    head_name: str,
    is_wanted: Callable[[str, nn.Parameter], bool],
    *,
    name: str,
    is_whole: bool,
) -> RandomLayers:
    begins = {
        path: parameter.detach().flatten()[:_NUMBERS].cpu().clone()
        for path, parameter in _named(network).items()
        if not path.startswith(f"{plain_name(head_name)}.")
        and not parameter.is_meta
        and is_wanted(path, parameter)
    }
    return RandomLayers(name, begins, is_whole)


def _named(network: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters by the names that they have in a file: no compiler's, and no adapters."""
    with without_adapters(network):
        return {plain_name(path): parameter for path, parameter in network.named_parameters()}


def _trains(optimised: Collection[nn.Parameter] | None) -> Callable[[nn.Parameter], bool]:
    moved = None if optimised is None else set(map(id, optimised))
    return lambda parameter: parameter.requires_grad and (moved is None or id(parameter) in moved)


def _is_weight(path: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is what a layer multiplies with: noise goes on through any other."""
    return parameter.ndim > 1 and not is_positional(path) and "token" not in path


def _is_telling(module: nn.Module) -> bool:
    """Whether a module is a norm that a training would have changed."""
    has_statistics = isinstance(module, _NormBase) and module.running_mean is not None
    return has_statistics or (is_norm(module) and _begin_of(module) is not None)


def _has_learnt(norm: nn.Module) -> bool:
    if isinstance(norm, _NormBase) and norm.running_mean is not None:
        pairs = ((norm.get_buffer("running_mean"), 0), (norm.get_buffer("running_var"), 1))
        return any(not t.is_meta and bool(torch.any(t != value)) for t, value in pairs)
    weight = _begin_of(norm)
    # A builder may begin with another number, but with the same for all.
    return weight is not None and bool((weight != weight[0]).any())


def _begin_of(norm: nn.Module) -> Tensor | None:
    """The numbers that a norm scales with, where it has several of them."""
    weight = norm._parameters.get("weight")
    is_seen = weight is not None and not weight.is_meta and weight.numel() > 1
    return weight.detach().flatten() if weight is not None and is_seen else None

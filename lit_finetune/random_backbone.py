"""Whether a backbone that stays frozen has learnt nothing: a head on it learns from noise."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from lit_finetune.positions import is_positional
from lit_finetune.untrained_head import NewHead

_NUMBERS = 64
"""How many numbers of each parameter are kept to compare."""


def random_backbone(
    network: nn.Module,
    head_name: str,
    *,
    backbone: object,
    name: str = "",
    kwargs: Mapping[str, Any] | None = None,
) -> NewHead | None:
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
    norms = [
        m for m in network.modules() if isinstance(m, _NormBase) and m.running_mean is not None
    ]
    has_learnt = any(map(_has_seen_pictures, norms)) or any(
        value for key, value in (kwargs or {}).items() if _is_of_weights(key)
    )
    if has_learnt or (isinstance(backbone, nn.Module) and not norms):
        return None
    begins = {
        path: parameter.detach().flatten()[:_NUMBERS].cpu().clone()
        for path, parameter in network.named_parameters()
        if not path.startswith(f"{head_name}.") and not parameter.is_meta
    }
    return NewHead(name, is_random=True, begins=begins)


def frozen_share(network: nn.Module, head_name: str) -> float:
    """The share of the parameters before the head that do not train, embeddings of positions apart.

    >>> network = nn.Sequential(nn.Linear(3, 1), nn.Linear(1, 2))
    >>> _ = network[0].bias.requires_grad_(False)
    >>> frozen_share(network, "1")
    0.25
    """
    sizes = {
        name: (parameter.numel(), parameter.requires_grad)
        for name, parameter in network.named_parameters()
        if not name.startswith(f"{head_name}.") and not is_positional(name)
    }
    frozen = sum(size for size, trains in sizes.values() if not trains)
    return frozen / max(1, sum(size for size, _ in sizes.values()))


def warning_of_random(random: NewHead, model: Any, *, is_probed: bool = False) -> str | None:
    """What is the matter with a backbone that is random, and what to do; None if nothing is.

    Args:
        random: The backbone as it was built.
        model: The module that has it as `backbone`, with a head of the name `head_name`.
        is_probed: Whether a head is fitted to its features at once.
    """
    share = frozen_share(model.backbone, model.head_name)
    if not (share or is_probed) or not random.is_still_in(model.backbone):
        return None
    use = f"{share:.0%} of it is frozen" if share else "a head is fitted to its features at once"
    return (
        f"The backbone {random.name} has random weights, and {use}: what the head learns from means"
        " nothing. Give pretrained weights (`weights`, on the command line `--model.weights`:"
        " `DEFAULT`, `pretrained` or a file), or train all of it from the start."
    )


def _has_seen_pictures(norm: nn.Module) -> bool:
    buffers: Iterable[tuple[str, float]] = [("running_mean", 0.0), ("running_var", 1.0)]
    tensors = ((norm.get_buffer(name), value) for name, value in buffers)
    return any(not t.is_meta and bool(torch.any(t != value)) for t, value in tensors)


def _is_of_weights(key: str) -> bool:
    return any(
        part in key for part in ("weights", "pretrained", "checkpoint", "ckpt", "state_dict")
    )

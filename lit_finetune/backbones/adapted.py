"""Any backbone by its name, for pictures of other channels or another size than it is made for."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from lit_finetune.backbones.backbone import Backbone
from lit_finetune.backbones.create import create_backbone
from lit_finetune.backbones.input_adaptation import adapt_input


def create_adapted(
    backbone: str | nn.Module | Callable[..., nn.Module],
    *,
    weights: str | None = None,
    backbone_kwargs: dict[str, Any] | None = None,
    in_chans: int | None = None,
    image_size: int | None = None,
) -> Backbone:
    """Build a network that takes such pictures, or make it take them.

    Args:
        backbone: As for `create_backbone`, and so are `weights` and `backbone_kwargs`.
        weights: Published weights; those of a file come later.
        backbone_kwargs: They come before what is asked for here.
        in_chans: Channels; None for those that the network is made for.
        image_size: Side of the pictures; None for the one that the network is made for.

    Raises:
        ValueError: The network cannot be built, or cannot be adapted.
    """
    given = {**_input_kwargs(backbone, in_chans, image_size), **(backbone_kwargs or {})}
    built = create_backbone(backbone, weights=weights, backbone_kwargs=given)
    config = adapt_input(built.network, built.data_config, in_chans=in_chans, image_size=image_size)
    return replace(built, data_config=config)


def _input_kwargs(
    backbone: str | nn.Module | Callable[..., nn.Module],
    in_chans: int | None,
    image_size: int | None,
) -> dict[str, Any]:
    """What the network's library is told, where it can build for such pictures itself."""
    if not isinstance(backbone, str):
        return {}
    if backbone.startswith("timm/"):
        from lit_finetune.backbones import timm

        return timm.input_kwargs(backbone.removeprefix("timm/"), in_chans, image_size)
    is_fixed = image_size is not None and backbone.startswith("maxvit")  # the one of torchvision
    return {"input_size": (image_size, image_size)} if is_fixed else {}

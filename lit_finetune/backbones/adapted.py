"""Build a backbone for images of another number of channels or another size."""

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
    """Build a network for such images, or adapt it to them.

    Args:
        backbone: As for `create_backbone`.
        weights: The name of published weights, not a file.
        backbone_kwargs: As for `create_backbone`; they override `in_chans` and `image_size`.
        in_chans: The number of channels; None for the network's own.
        image_size: The side of the images; None for the network's own.

    Raises:
        ValueError: The network cannot be built or adapted.
    """
    kwargs = {**_input_kwargs(backbone, in_chans, image_size), **(backbone_kwargs or {})}
    built = create_backbone(backbone, weights=weights, backbone_kwargs=kwargs)
    config = adapt_input(built.network, built.data_config, in_chans=in_chans, image_size=image_size)
    return replace(built, data_config=config)


def _input_kwargs(
    backbone: str | nn.Module | Callable[..., nn.Module],
    in_chans: int | None,
    image_size: int | None,
) -> dict[str, Any]:
    """The arguments with which the network's library builds it for such images; else empty."""
    if not isinstance(backbone, str):
        return {}
    if backbone.startswith("timm/"):
        from lit_finetune.backbones import timm

        return timm.input_kwargs(backbone.removeprefix("timm/"), in_chans, image_size)
    is_fixed = image_size is not None and backbone.startswith("maxvit")  # torchvision's MaxViT
    return {"input_size": (image_size, image_size)} if is_fixed else {}

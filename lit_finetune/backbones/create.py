"""Any backbone by its name."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lit_finetune.data_config import DataConfig
from lit_finetune.inputs import adapt_input

WEIGHTS_SUFFIXES = (".pth", ".pt", ".th", ".bin", ".safetensors", ".ckpt", ".tar", ".t7")


@dataclass(frozen=True, slots=True)
class Backbone:
    """A network and what it expects."""

    network: nn.Module
    """The whole network, with the head it was built with."""
    data_config: DataConfig
    """What pictures it expects."""
    name: str
    """What it was made from: the name that was asked for, or the network's class."""


def create_backbone(
    backbone: str | nn.Module,
    *,
    weights: str | None = None,
    backbone_kwargs: dict[str, Any] | None = None,
    in_chans: int | None = None,
    image_size: int | None = None,
) -> Backbone:
    """Build a network, and find out what pictures it expects.

    >>> create_backbone("squeezenet1_1").data_config.resize_size
    256

    Args:
        backbone: A torchvision name (`resnet18`), `timm/<name>`, an import path
            (`my_package.nets.ResNet`) that is looked up in the working directory too, or a network.
        weights: Published weights: `DEFAULT` or a member of the enum (`IMAGENET1K_V1`) for
            torchvision, `pretrained` for timm. A weights *file* is for `load_weights`.
        backbone_kwargs: What the network's constructor is called with.
        in_chans: Channels of the pictures, if not those that the network is made for.
        image_size: Side of the pictures, if not the one that the network is made for.

    Raises:
        ValueError: There is no such network, it has no such weights or arguments.
        ModuleNotFoundError: timm, or the module of an import path, is not installed.
        ConnectionError: The weights cannot be downloaded.
    """
    kwargs = dict(backbone_kwargs or {})
    if weights is not None and is_weights_file(weights):
        raise ValueError(
            f"{weights!r} is a file: build the network first, then use `load_weights`."
        )
    if isinstance(backbone, nn.Module):
        _refuse(type(backbone).__name__, weights=weights, backbone_kwargs=backbone_kwargs)
        network, config, backbone = backbone, DataConfig(), type(backbone).__name__
    elif backbone.startswith("timm/"):
        from lit_finetune.backbones import timm

        name = backbone.removeprefix("timm/")
        kwargs = {**timm.input_kwargs(name, in_chans, image_size), **kwargs}
        network, config = timm.create(name, weights, kwargs)
    elif "." in backbone:
        from lit_finetune.backbones import imported

        _refuse(backbone, weights=weights)
        network, config = imported.create(backbone, kwargs), DataConfig()
    else:
        from lit_finetune.backbones import torchvision

        kwargs = {**torchvision.input_kwargs(backbone, image_size), **kwargs}
        network, config = torchvision.create(backbone, weights, kwargs)
    config = adapt_input(network, config, in_chans=in_chans, image_size=image_size)
    return Backbone(network, config, backbone)


def is_weights_file(weights: str) -> bool:
    """Whether `weights` is the path of a file, not the name of published weights.

    >>> is_weights_file("runs/best.ckpt"), is_weights_file("DEFAULT")
    (True, False)
    """
    path = Path(weights)
    return path.suffix in WEIGHTS_SUFFIXES or len(path.parts) > 1 or path.is_file()


def _refuse(backbone: str, **arguments: object) -> None:
    """Raise if an argument is given that has no meaning for this kind of backbone."""
    meaning = {
        "weights": "published weights are for torchvision and timm names; give the path of a file",
        "backbone_kwargs": "the network is built already",
    }
    for name, value in arguments.items():
        if value:
            raise ValueError(
                f"`{name}` is {value!r}, but `{backbone}` takes none: {meaning[name]}."
            )

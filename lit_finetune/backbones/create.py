"""Any backbone by its name."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lit_finetune.data_config import DataConfig

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
        return Backbone(backbone, DataConfig(), type(backbone).__name__)
    if backbone.startswith("timm/"):
        from lit_finetune.backbones import timm

        network, config = timm.create(backbone.removeprefix("timm/"), weights, kwargs)
    elif "." in backbone:
        from lit_finetune.backbones import imported

        _refuse(backbone, weights=weights)
        network, config = imported.create(backbone, kwargs), DataConfig()
    else:
        from lit_finetune.backbones import torchvision

        network, config = torchvision.create(backbone, weights, kwargs)
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

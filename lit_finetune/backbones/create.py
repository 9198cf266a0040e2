"""Build a backbone by its name."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from lit_finetune.backbones.backbone import Backbone
from lit_finetune.classes.names import config_classes
from lit_finetune.images.data_config import DataConfig

WEIGHTS_SUFFIXES = (".pth", ".pt", ".th", ".bin", ".safetensors", ".ckpt", ".tar", ".t7")


def create_backbone(
    backbone: str | nn.Module | Callable[..., nn.Module],
    *,
    weights: str | None = None,
    backbone_kwargs: dict[str, Any] | None = None,
) -> Backbone:
    """Build a network, and determine its data config.

    >>> create_backbone("squeezenet1_1").data_config.resize_size
    256

    Args:
        backbone: A torchvision name (`resnet18`), `timm/<name>`, `hf/<name>` (a model type of
            Hugging Face transformers, a folder, a `config.json`, or a name on the hub), an import
            path (`my_package.nets.ResNet`), also from the working directory, a class or function,
            or a network. Your own network may declare the images that it expects in an attribute
            `data_config`.
        weights: Published weights: `DEFAULT` or a member of the enum (`IMAGENET1K_V1`) for
            torchvision, `pretrained` for timm and the hub. A weights *file* is for `load_weights`.
        backbone_kwargs: The arguments of the network's constructor.

    Raises:
        ValueError: There is no such network, or it has no such weights or arguments.
        FileNotFoundError: There is no such Hugging Face folder, or it lacks a file.
        ModuleNotFoundError: timm, transformers, or the module of an import path is not installed.
        ConnectionError: The weights cannot be downloaded.
    """
    kwargs = dict(backbone_kwargs or {})
    if weights is not None and is_weights_file(weights):
        raise ValueError(
            f"{weights!r} is a file: build the network first, then use `load_weights`."
        )
    if isinstance(backbone, nn.Module):
        _refuse_arguments(type(backbone).__name__, weights=weights, backbone_kwargs=backbone_kwargs)
        return _user_backbone(backbone, type(backbone).__name__)
    if not isinstance(backbone, str):
        from lit_finetune.backbones import imported

        _refuse_arguments(getattr(backbone, "__name__", "the backbone"), weights=weights)
        network = imported.call(backbone, getattr(backbone, "__name__", repr(backbone)), kwargs)
        return _user_backbone(network, type(network).__name__)
    if backbone.startswith("hf/"):
        from lit_finetune.backbones import huggingface

        return huggingface.create(backbone.removeprefix("hf/"), weights, kwargs)
    if backbone.startswith("timm/"):
        from lit_finetune.backbones import timm

        return timm.create(backbone.removeprefix("timm/"), weights, kwargs)
    if "." in backbone:
        from lit_finetune.backbones import imported

        _refuse_arguments(backbone, weights=weights)
        return _user_backbone(imported.create(backbone, kwargs), backbone)
    from lit_finetune.backbones import torchvision

    return torchvision.create(backbone, weights, kwargs)


def _user_backbone(network: nn.Module, name: str) -> Backbone:
    """A user's network, with the data config and classes that it declares."""
    classes = config_classes(getattr(network, "config", None))
    return Backbone(network, _declared_data_config(network), name, classes=classes)


def is_weights_file(weights: str) -> bool:
    """Whether `weights` is the path of a file or a folder, not the name of published weights.

    >>> is_weights_file("runs/best.ckpt"), is_weights_file("DEFAULT")
    (True, False)
    """
    path = Path(weights)
    is_enum = weights == "pretrained" or weights.isupper()  # a folder may be called so, too
    exists = path.is_file() or (path.is_dir() and not is_enum)
    return path.suffix in WEIGHTS_SUFFIXES or len(path.parts) > 1 or exists


def _declared_data_config(network: nn.Module) -> DataConfig:
    """The `data_config` of a user's network, from a `DataConfig` or a mapping; else the default."""
    declared = getattr(network, "data_config", None)
    if isinstance(declared, Mapping):
        return DataConfig.from_dict(declared)
    return declared if isinstance(declared, DataConfig) else DataConfig()


def _refuse_arguments(backbone: str, **arguments: object) -> None:
    """Raise if an argument is given that this kind of backbone does not support."""
    reasons = {
        "weights": "published weights are for torchvision, timm and Hugging Face names; give the "
        "path of a file",
        "backbone_kwargs": "the network is built already",
    }
    for name, value in arguments.items():
        if value:
            raise ValueError(
                f"`{name}` is {value!r}, but `{backbone}` takes none: {reasons[name]}."
            )

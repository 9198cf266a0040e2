"""The image classifiers of torchvision."""

import warnings
from typing import Any

from torch import nn
from torchvision import models
from torchvision.models import WeightsEnum

from lit_finetune._errors import nearest, one_of
from lit_finetune.backbones.backbone import Backbone
from lit_finetune.classes.names import unique_names
from lit_finetune.images.data_config import DataConfig

WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")


def create(name: str, weights: str | None, kwargs: dict[str, Any]) -> Backbone:
    """Build a classifier of torchvision; without weights, its first weights tell the data config.

    GoogLeNet and Inception come with their auxiliary heads, unless `aux_logits` is False; and they
    take pictures under ImageNet's mean and std, as with their published weights.
    """
    names = models.list_models(module=models)
    if name not in names:
        raise ValueError(
            f"torchvision has no classifier {name!r}.{nearest(name, names)} Other backbones are "
            "`timm/<name>` and import paths (`my_package.nets.ResNet`)."
        )
    enum = models.get_model_weights(name)
    if weights is not None and weights != "DEFAULT":
        one_of(weights, ["DEFAULT", *(member.name for member in enum)], f"weights of {name}")
    chosen = None if weights is None else enum[weights]
    network = _build(name, chosen, _with_defaults(name, chosen, kwargs))
    config = _data_config(network, chosen or next(iter(enum)))
    classes = chosen and chosen.meta.get("categories")
    return Backbone(network, config, name, classes=unique_names(classes or ()))


def _with_defaults(
    name: str, weights: WeightsEnum | None, kwargs: dict[str, Any]
) -> dict[str, Any]:
    """What torchvision sets itself when GoogLeNet and Inception come with weights."""
    if name not in WITH_AUXILIARY_HEADS:
        return kwargs
    own = {} if weights else {"transform_input": True, "init_weights": True}
    return {"aux_logits": True, **own, **kwargs}


def _build(name: str, weights: WeightsEnum | None, kwargs: dict[str, Any]) -> nn.Module:
    try:
        with warnings.catch_warnings():
            # That GoogLeNet's auxiliary heads are to be trained: they get a new layer and are.
            warnings.filterwarnings("ignore", "auxiliary heads in the pretrained")
            network: nn.Module = models.get_model(name, weights=weights, **kwargs)
    except TypeError as error:
        raise ValueError(f"`backbone_kwargs` do not fit torchvision's {name}: {error}.") from error
    except OSError as error:
        raise ConnectionError(
            f"Could not get the weights {weights and weights.name} of {name}: {error}. Without a "
            "network, load them from a file: `weights: path/to/file.pth`."
        ) from error
    return network


def _data_config(network: nn.Module, weights: WeightsEnum) -> DataConfig:
    preset = weights.transforms()
    size = preset.crop_size[0]
    config = DataConfig(
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        image_size=(size, size),
        resize_size=preset.resize_size[0],
        interpolation=preset.interpolation.value,
    )
    # A vision transformer has one size that it was built for, whatever its published weights say.
    built_for = getattr(network, "image_size", size)
    return config if built_for == size else config.resized(built_for)

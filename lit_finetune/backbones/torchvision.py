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
    """Build a classifier of torchvision; without weights, its first weights give the data config.

    GoogLeNet and Inception have their auxiliary heads, unless `aux_logits` is False, and take
    images normalised by ImageNet's mean and std, as with their published weights.
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
    entry = None if weights is None else enum[weights]
    network = _build(name, entry, _with_defaults(name, entry, kwargs))
    config = _data_config(network, entry or next(iter(enum)))
    classes = entry and entry.meta.get("categories")
    return Backbone(network, config, name, classes=unique_names(classes or ()))


def _with_defaults(
    name: str, weights: WeightsEnum | None, kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Add the arguments that torchvision sets for GoogLeNet and Inception with weights."""
    if name not in WITH_AUXILIARY_HEADS:
        return kwargs
    defaults = {} if weights else {"transform_input": True, "init_weights": True}
    return {"aux_logits": True, **defaults, **kwargs}


def _build(name: str, weights: WeightsEnum | None, kwargs: dict[str, Any]) -> nn.Module:
    try:
        with warnings.catch_warnings():
            # Its advice to train GoogLeNet's auxiliary heads: they get a new layer, and train.
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
    # A vision transformer is built for one size, which may differ from its published weights'.
    image_size = getattr(network, "image_size", size)
    return config if image_size == size else config.resized(image_size)

"""The image classifiers of timm."""

import math
from typing import Any

from torch import nn

from lit_finetune._errors import nearest, one_of
from lit_finetune.backbones.backbone import Backbone
from lit_finetune.classes.imagenet import as_categories
from lit_finetune.classes.names import are_generic, unique_names
from lit_finetune.images.data_config import DataConfig


def create(name: str, weights: str | None, kwargs: dict[str, Any]) -> Backbone:
    """Build a classifier of timm, with or without its published weights."""
    timm = _import_timm()
    _check_name(timm, name)
    if weights is not None:
        one_of(weights, ["pretrained"], f"weights of timm/{name}")
        if not timm.models.is_model_pretrained(name):
            raise ValueError(
                f"timm has no weights for {name!r}. Give the path of a file: `weights: file.pth`."
            )
    network = _build(timm, name, weights is not None, kwargs)
    config = data_config(timm.data.resolve_model_data_config(network))
    classes = () if weights is None else _class_names(timm, network)
    return Backbone(network, config, f"timm/{name}", classes=classes)


def input_kwargs(name: str, in_chans: int | None, image_size: int | None) -> dict[str, Any]:
    """The arguments with which timm builds a network for other channels or another image size."""
    timm = _import_timm()
    _check_name(timm, name)
    kwargs = {} if in_chans is None else {"in_chans": in_chans}
    config = timm.models.get_pretrained_cfg(name)
    if image_size is not None and config and config.fixed_input_size:
        return {**kwargs, "img_size": image_size}
    return kwargs


def data_config(resolved: dict[str, Any]) -> DataConfig:
    """Convert timm's data config to ours.

    >>> data_config({"mean": (0.5,), "std": (0.5,), "input_size": (1, 96, 96), "crop_pct": 0.875,
    ...              "interpolation": "bicubic", "crop_mode": "center"}).resize_size
    109
    """
    height, width = resolved["input_size"][1:]
    short_side, crop_pct = min(height, width), resolved["crop_pct"]
    crop_mode = resolved["crop_mode"]
    if crop_pct > 1 and crop_mode == "center":  # VOLO at 448: images have a black border
        crop_mode = "pad"
    return DataConfig(
        mean=tuple(resolved["mean"]),
        std=tuple(resolved["std"]),
        image_size=(height, width),
        resize_size=math.floor(short_side / crop_pct),
        interpolation=resolved["interpolation"],
        crop_mode=crop_mode,
    )


def _class_names(timm: Any, network: Any) -> tuple[str, ...]:
    """The classes of the published weights: their own labels, or those of an ImageNet subset."""
    names = network.pretrained_cfg.get("label_names")
    subset = None if names else timm.data.infer_imagenet_subset(network)
    if subset:
        names = timm.data.ImageNetInfo(subset).label_names()
    names = [str(name) for name in names or ()]
    if len(names) != network.num_classes or are_generic(names):
        return ()
    return unique_names(as_categories(names) or names)


def _import_timm() -> Any:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "A `timm/` backbone needs timm: pip install 'lit-finetune[timm]'", name="timm"
        ) from error
    return timm


def _check_name(timm: Any, name: str) -> None:
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        hint = nearest(architecture, timm.list_models())
        raise ValueError(f"timm has no model {architecture!r}.{hint}")
    tags = [option.partition(".")[2] for option in timm.list_pretrained(f"{architecture}.*")]
    if tag:
        one_of(tag, tags, f"tag of timm/{architecture}")


def _build(timm: Any, name: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    try:
        network: nn.Module = timm.create_model(name, pretrained=pretrained, **kwargs)
    except TypeError as error:
        raise ValueError(f"`backbone_kwargs` do not fit timm/{name}: {error}.") from error
    except OSError as error:
        raise ConnectionError(
            f"Could not get the weights of timm/{name}: {error}. Without a network, load them "
            "from a file: `weights: path/to/file.safetensors`."
        ) from error
    return network

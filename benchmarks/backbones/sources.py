"""The lists of names that are examined, and what each library says of its own networks."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from benchmarks.hf_families import TINY_CONFIGS


@dataclass(frozen=True, kw_only=True)
class Source:
    """A library with classifiers."""

    title: str
    prefix: str
    """What comes before its names in `FinetuneClassifier(backbone)`."""
    names: Callable[[], list[str]]
    family_of: Callable[[str], str]
    build: Callable[[str], nn.Module]
    """The network as the library builds it, without us."""
    own_data_config: Callable[[nn.Module, str], dict[str, Any]]
    """What pictures it expects, as the library says; by the fields of our `DataConfig`."""
    own_num_features: Callable[[nn.Module], int | None] = lambda network: None
    """How many features go into the classifier, where the library says so."""


def torchvision_source() -> Source:
    """The classifiers of torchvision."""
    from torchvision import models

    def build(name: str) -> nn.Module:
        quiet = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        network: nn.Module = models.get_model(name, **quiet)
        return network

    def own_data_config(network: nn.Module, name: str) -> dict[str, Any]:
        presets = [weights.transforms() for weights in models.get_model_weights(name)]
        size = getattr(network, "image_size", presets[0].crop_size[0])
        preset = next(preset for preset in presets if preset.crop_size[0] == size)
        return {
            "mean": tuple(preset.mean),
            "std": tuple(preset.std),
            "image_size": (preset.crop_size[0], preset.crop_size[0]),
            "resize_size": preset.resize_size[0],
            "interpolation": preset.interpolation.value,
            "crop_mode": "center",
        }

    return Source(
        title="torchvision",
        prefix="",
        names=lambda: models.list_models(module=models),
        family_of=lambda name: _module_name(models.get_model_builder(name)),
        build=build,
        own_data_config=own_data_config,
    )


def timm_source() -> Source:
    """The classifiers of timm."""
    import timm
    from timm.data.config import resolve_model_data_config

    def own_data_config(network: nn.Module, name: str) -> dict[str, Any]:
        own = resolve_model_data_config(network)  # type: ignore[no-untyped-call]
        size = own["input_size"][1:]
        return {
            "mean": tuple(own["mean"]),
            "std": tuple(own["std"]),
            "image_size": size,
            "resize_size": min(math.floor(side / own["crop_pct"]) for side in size),
            "interpolation": own["interpolation"],
            # What timm does when it "crops" more than there is.
            "crop_mode": "pad" if own["crop_pct"] > 1 else own["crop_mode"],
        }

    return Source(
        title="timm",
        prefix="timm/",
        names=timm.list_models,
        family_of=lambda name: _module_name(timm.model_entrypoint(name)),
        build=timm.create_model,
        own_data_config=own_data_config,
        own_num_features=lambda network: getattr(network, "head_hidden_size", None),
    )


def huggingface_source() -> Source:
    """Model types of Hugging Face transformers, each as its config has it by default.

    Its configs say nothing of mean and deviation, so there is no data config to compare.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

    def build(name: str) -> nn.Module:
        config = AutoConfig.for_model(name)
        has_classifier = type(config) in AutoModelForImageClassification._model_mapping
        kind = AutoModelForImageClassification if has_classifier else AutoModel
        network: nn.Module = kind.from_config(config)  # type: ignore[no-untyped-call]
        return network

    return Source(
        title="transformers",
        prefix="hf/",
        names=lambda: sorted(TINY_CONFIGS),
        family_of=lambda name: name,
        build=build,
        own_data_config=lambda network, name: {},
    )


def _module_name(function: Any) -> str:
    return str(function.__module__).rpartition(".")[2]


SOURCES: dict[str, Callable[[], Source]] = {
    "torchvision": torchvision_source,
    "timm": timm_source,
    "huggingface": huggingface_source,
}
"""By the name on the command line."""

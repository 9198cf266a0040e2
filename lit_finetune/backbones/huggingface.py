"""The image classifiers and vision towers of Hugging Face transformers.

Code in a model's repository on the hub is never run.
"""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from lit_finetune._errors import nearest, one_of
from lit_finetune.backbones.backbone import Backbone
from lit_finetune.backbones.hub_offline import hub_offline
from lit_finetune.backbones.huggingface_config import (
    error_reason,
    import_transformers,
    make_config,
    make_data_config,
    plain_fields,
    read_fields,
    read_processor,
    refuse_unsafe_fields,
)
from lit_finetune.checkpoints.build_limits import largest_number, limited_memory
from lit_finetune.classes.names import config_classes

WEIGHTS_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""The weights files in a transformers folder, the preferred ones first."""

_UNUSED_MODULES: Mapping[str, Mapping[str, type[nn.Module]]] = {
    "clip": {"vision_model.post_layernorm": nn.Identity},
    "metaclip_2": {"vision_model.post_layernorm": nn.Identity},
    "siglip": {"vision_model.head": nn.Identity},
}
"""Modules of the pooled output, which classifiers on the mean of all tokens do not use."""


def create(name: str, weights: str | None, kwargs: dict[str, Any]) -> Backbone:
    """Build a network of transformers with new weights; a folder's weights are its `weights_file`.

    Args:
        name: A model type (`vit`), without weights; a folder, with its weights; a `config.json`,
            for a folder's network without its weights; or a name on the hub.
        weights: `pretrained` for the weights of a folder (the default there) or of the hub.
        kwargs: Fields that override those of the network's config.
    """
    transformers = import_transformers()
    if name in transformers.CONFIG_MAPPING:
        _refuse_weights(name, weights)
        return _build_from_fields(f"hf/{name}", {"model_type": name}, {}, kwargs)
    path = Path(name).expanduser()
    if path.is_file():
        _refuse_weights(name, weights)
        return _build_from_fields(f"hf/{name}", read_fields(path), read_processor(path), kwargs)
    if weights is not None:
        one_of(weights, ["pretrained"], f"weights of hf/{name}")
    if path.is_dir():
        return _create_from_folder(f"hf/{name}", path, kwargs, with_weights=True)
    folder = _download_from_hub(name, with_weights=weights is not None)
    return _create_from_folder(f"hf/{name}", folder, kwargs, with_weights=weights is not None)


def _create_from_folder(
    name: str, folder: Path, kwargs: dict[str, Any], *, with_weights: bool
) -> Backbone:
    config = folder / "config.json"
    if not config.is_file():
        files = ", ".join(sorted(file.name for file in folder.iterdir())[:10])
        raise FileNotFoundError(f"{folder} has no `config.json`. It has: {files or 'no files'}.")
    file = next((folder / file for file in WEIGHTS_FILES if (folder / file).is_file()), None)
    if with_weights and file is None:
        raise FileNotFoundError(
            f"{folder} has none of {', '.join(WEIGHTS_FILES)}. For the network without its "
            f"weights, name the config: `hf/{config}`."
        )
    weights_file = file if with_weights else None
    return _build_from_fields(
        name, read_fields(config), read_processor(config), kwargs, weights_file
    )


def _build_from_fields(
    name: str,
    fields: Mapping[str, Any],
    processor: Mapping[str, Any],
    kwargs: Mapping[str, Any],
    weights_file: Path | None = None,
) -> Backbone:
    """Build the network of a config's fields, with `kwargs` overriding some."""
    refuse_unsafe_fields(name, fields)
    sizes = {**fields, **kwargs}
    description = f"The config of {name} describes a network, with {largest_number(sizes, sizes)}"
    with hub_offline(), limited_memory(description):
        return _build_from_config(
            name, make_config(name, fields, kwargs), processor, kwargs, weights_file
        )


def _build_from_config(
    name: str,
    config: Any,
    processor: Mapping[str, Any],
    kwargs: Mapping[str, Any],
    weights_file: Path | None,
) -> Backbone:
    factory, has_head = _model_class(name, config)
    rebuild_args = f"hf/{config.model_type}", plain_fields(config)
    try:
        data_config = make_data_config(config, processor, kwargs)
    except (TypeError, ValueError, AttributeError, KeyError, OverflowError) as error:
        raise ValueError(f"The image processor of {name} cannot be used: {error}") from error
    try:
        network: nn.Module = factory(config)
    except Exception as error:  # the combination of fields may be invalid in any way
        raise ValueError(
            f"{name} cannot be built from its config: {error_reason(error)}"
        ) from error
    _remove_unused(network, config.model_type)
    if "interpolate_pos_encoding" in inspect.signature(network.forward).parameters:
        network.register_forward_pre_hook(_interpolate_positions, with_kwargs=True)
    return Backbone(
        network=network,
        data_config=data_config,
        name=name,
        weights_file=weights_file,
        classes=config_classes(config),
        has_head=has_head,
        rebuild_args=rebuild_args,
    )


def _remove_unused(network: nn.Module, model_type: str) -> None:
    """Remove parameters that the logits do not depend on: DDP fails without their gradients."""
    for module in network.modules():
        if isinstance(vars(module)["_parameters"].get("mask_token"), nn.Parameter):
            setattr(module, "mask_token", None)  # noqa: B010  # typed as a module or a tensor
    for path, replacement in _UNUSED_MODULES.get(model_type, {}).items():
        network.set_submodule(path, replacement())


def _interpolate_positions(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
    """A forward pre-hook that accepts images of any size; position embeddings are interpolated."""
    return args, {"interpolate_pos_encoding": True, **kwargs}


def _model_class(name: str, config: Any) -> tuple[Any, bool]:
    """The class of the network, and whether it has a head."""
    transformers = import_transformers()
    for mapping, has_head in (
        (transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, True),
        (transformers.MODEL_MAPPING, False),
    ):
        if type(config) in mapping:
            found = mapping[type(config)]
            factory = (
                found[0] if isinstance(found, tuple) else found
            )  # the other classes have two heads
            if factory.main_input_name == "pixel_values" and config.model_type != "siglip2":
                return factory, has_head
    raise ValueError(
        f"{name} is of the type {config.model_type!r}, which does not take pictures as "
        "`pixel_values` alone. Of networks for text and pictures, use the part for pictures, such "
        "as `clip_vision_model`."
    )


def _refuse_weights(name: str, weights: str | None) -> None:
    if weights is not None:
        raise ValueError(
            f"`weights` is {weights!r}, but hf/{name} is an architecture without weights: give the "
            "path of a file, or name a folder or a model of the hub as the backbone."
        )


def _download_from_hub(name: str, *, with_weights: bool) -> Path:
    """Download a model of the hub, unless cached; return its folder."""
    transformers = import_transformers()
    first, _, last = name.rpartition("/")
    is_local = first != "" and Path(first).is_dir()
    is_path = name.startswith((".", "/", "~")) or "/" in first or is_local
    if first and is_path and (parent := Path(first).expanduser()).is_dir():
        folders = [path.name for path in parent.iterdir() if path.is_dir()]
        raise FileNotFoundError(f"hf/{name}: there is no folder {name!r}.{nearest(last, folders)}")
    hint = nearest(name, transformers.CONFIG_MAPPING) or (
        " A backbone of Hugging Face is `hf/` and a model type (`vit`), a folder, a `config.json` "
        "or a name on the hub (`google/vit-base-patch16-224`)."
    )
    if is_path or "/" not in name:
        raise FileNotFoundError(f"hf/{name}: there is no model type and no folder {name!r}.{hint}")
    from huggingface_hub import snapshot_download

    # Not all files: many models have their weights in three formats.
    for weights in (("model*.safetensors*",), ("pytorch_model*.bin*",)) if with_weights else ((),):
        patterns = ["config.json", "p*processor_config.json", *weights]
        try:
            folder = Path(snapshot_download(name, allow_patterns=patterns))
        except Exception as error:  # many classes, of the connection or the hub's answer
            raise ConnectionError(
                f"hf/{name}: there is no folder {name!r} here, and the hub gave no such model"
                f" ({type(error).__name__}: {str(error).strip().splitlines()[0][:200]}): name a"
                " folder that holds a `config.json` and `model.safetensors`, or a model of the hub"
                " when connected."
            ) from error
        if any((folder / file).is_file() for file in WEIGHTS_FILES):
            break
    return folder

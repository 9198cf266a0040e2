"""The image classifiers and vision towers of Hugging Face transformers.

Code in a model's repository on the hub is never run.
"""

import inspect
import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from lit_finetune._errors import nearest, one_of
from lit_finetune.backbones.backbone import Backbone
from lit_finetune.backbones.hub_offline import hub_offline
from lit_finetune.backbones.image_processor import processor_data_config
from lit_finetune.checkpoints.build_limits import largest_number, limited_memory
from lit_finetune.classes.names import config_classes
from lit_finetune.files.json import read_json
from lit_finetune.images.data_config import DataConfig

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

_MAX_LABELS = 1 << 20
_NON_NETWORK_FIELDS = {"architectures", "auto_map", "dtype", "torch_dtype", "transformers_version"}


def create(name: str, weights: str | None, kwargs: dict[str, Any]) -> Backbone:
    """Build a network of transformers with new weights; a folder's weights are its `weights_file`.

    Args:
        name: A model type (`vit`), without weights; a folder, with its weights; a `config.json`,
            for a folder's network without its weights; or a name on the hub.
        weights: `pretrained` for the weights of a folder (the default there) or of the hub.
        kwargs: Fields that override those of the network's config.
    """
    transformers = _import_transformers()
    if name in transformers.CONFIG_MAPPING:
        _refuse_weights(name, weights)
        return _build_from_fields(f"hf/{name}", {"model_type": name}, {}, kwargs)
    path = Path(name).expanduser()
    if path.is_file():
        _refuse_weights(name, weights)
        return _build_from_fields(f"hf/{name}", _read(path), _read_processor(path), kwargs)
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
    return _build_from_fields(name, _read(config), _read_processor(config), kwargs, weights_file)


def _build_from_fields(
    name: str,
    fields: Mapping[str, Any],
    processor: Mapping[str, Any],
    kwargs: Mapping[str, Any],
    weights_file: Path | None = None,
) -> Backbone:
    """Build the network of a config's fields, with `kwargs` overriding some."""
    _refuse_kernels(name, fields)
    _refuse_quantised(name, fields)
    _refuse_huge_numbers(name, fields)
    sizes = {**fields, **kwargs}
    description = f"The config of {name} describes a network, with {largest_number(sizes, sizes)}"
    with hub_offline(), limited_memory(description):
        return _build_from_config(
            name, _config(name, fields, kwargs), processor, kwargs, weights_file
        )


def _build_from_config(
    name: str,
    config: Any,
    processor: Mapping[str, Any],
    kwargs: Mapping[str, Any],
    weights_file: Path | None,
) -> Backbone:
    factory, has_head = _model_class(name, config)
    rebuild_args = f"hf/{config.model_type}", _plain_fields(config)
    try:
        data_config = _data_config(config, processor, kwargs)
    except (TypeError, ValueError, AttributeError, KeyError, OverflowError) as error:
        raise ValueError(f"The image processor of {name} cannot be used: {error}") from error
    try:
        network: nn.Module = factory(config)
    except Exception as error:  # the combination of fields may be invalid in any way
        raise ValueError(f"{name} cannot be built from its config: {_reason(error)}") from error
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


def _refuse_kernels(name: str, fields: Any) -> None:
    """Refuse a config with an attention implementation from the hub."""
    for key, value in fields.items() if isinstance(fields, Mapping) else ():
        implementations = value.values() if isinstance(value, Mapping) else [value]
        if key.strip("_").startswith("attn_implementation") and any(
            "/" in str(a) for a in implementations
        ):
            raise ValueError(
                f"The config of {name} asks for a program from the hub, `{key}` {value!r}, which is"
                " never run: remove that field from it."
            )
        _refuse_kernels(name, value)


def _refuse_quantised(name: str, fields: Mapping[str, Any]) -> None:
    """Refuse a network with quantised weights, which are integers and cannot be trained."""
    if how := fields.get("quantization_config"):
        kind = how.get("quant_method") if isinstance(how, Mapping) else how
        raise ValueError(
            f"The weights of {name} are quantised (`quantization_config`: {str(kind)[:100]}) and"
            " cannot be fine-tuned. Use the model that they were made from, in float32 or bfloat16."
        )


def _refuse_huge_numbers(name: str, fields: Any) -> None:
    """Refuse a config with a number larger than in any network, before a loop runs up to it."""
    for key, value in fields.items() if isinstance(fields, Mapping) else ():
        numbers = value if isinstance(value, list) else [value]
        for number in numbers:
            if type(number) is int and number > (_MAX_LABELS if key == "num_labels" else 1 << 24):
                raise ValueError(f"The config of {name} says `{key}` {number:,}: it is damaged.")
        _refuse_huge_numbers(name, value)


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


def _config(name: str, fields: Mapping[str, Any], kwargs: Mapping[str, Any]) -> Any:
    mapping = _import_transformers().CONFIG_MAPPING
    kind = fields.get("model_type")
    if kind not in mapping:
        own = ", and asks for code of its own, which is never run" if "auto_map" in fields else ""
        hint = nearest(str(kind), mapping)
        raise ValueError(f"{name} is of the type {kind!r}, unknown to transformers{own}.{hint}")
    if kind == "timm_wrapper":
        raise ValueError(f"{name} is a network of timm: use `timm/{fields.get('architecture')}`.")
    _refuse_no_classifier(name, mapping[kind], fields)
    known = {"attn_implementation", "num_labels", *mapping[kind]().to_dict()}
    for key in kwargs:
        if key not in known:
            raise ValueError(
                f"`backbone_kwargs` do not fit {name}: no {key!r}.{nearest(key, known)}"
            )
    merged = {
        **fields,
        **{key: _merge_field(fields.get(key), value) for key, value in kwargs.items()},
    }
    if "num_labels" in kwargs and "id2label" not in kwargs:
        merged = {k: v for k, v in merged.items() if k not in ("id2label", "label2id")}
    try:
        return mapping[kind].from_dict({k: v for k, v in merged.items() if k != "model_type"})
    except Exception as error:  # transformers raises exceptions of its own
        raise ValueError(f"The config of {name} is invalid: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """What is wrong with a config, without advice to connect to the hub."""
    text = str(error)
    if "HF_HUB_OFFLINE" in text or "offline mode" in text:
        return (
            "it names another model of the hub for a part of the network, and nothing is fetched"
            " for a local config. Use a network whose config describes all of it"
        )
    return text


def _merge_field(before: Any, value: Any) -> Any:
    """Override a config's field; of a nested config (`vision_config`), only the given fields."""
    are_mappings = isinstance(before, Mapping) and isinstance(value, Mapping)
    return {**before, **value} if are_mappings else value


def _refuse_no_classifier(name: str, kind: Any, fields: Mapping[str, Any]) -> None:
    """Refuse a model type for which transformers has neither a classifier nor a plain network."""
    transformers = _import_transformers()
    classifiers = transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    if kind not in classifiers and kind not in transformers.MODEL_MAPPING:
        built = ", ".join(map(str, fields.get("architectures") or ())) or "no classifier"
        raise ValueError(
            f"{name} is of the type {fields['model_type']!r} ({built}), which is no image"
            " classifier, nor a network that could become one. Use its backbone's own model."
        )


def _model_class(name: str, config: Any) -> tuple[Any, bool]:
    """The class of the network, and whether it has a head."""
    transformers = _import_transformers()
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


def _plain_fields(config: Any) -> dict[str, Any]:
    """The fields of a config that its class defines, as plain data."""
    known = {"num_labels", *type(config)().to_dict()} - _NON_NETWORK_FIELDS - {"model_type"}
    fields = json.loads(config.to_json_string(use_diff=True))
    return {key: value for key, value in fields.items() if key in known}


def _data_config(
    config: Any, processor: Mapping[str, Any], kwargs: Mapping[str, Any]
) -> DataConfig:
    """The network's data config: of the processor's image size, or else of the config's."""
    data_config = processor_data_config(processor or _default_processor(config))
    if processor and "image_size" not in {**kwargs, **kwargs.get("vision_config", {})}:
        return data_config
    size = getattr(getattr(config, "vision_config", config), "image_size", 224)
    return data_config.resized(size if isinstance(size, int) else tuple(size))


def _default_processor(config: Any) -> dict[str, Any]:
    """The default image processor of transformers for such a network."""
    image_processing_auto = import_module("transformers.models.auto.image_processing_auto")
    kinds = (config.model_type, config.model_type.removesuffix("_vision_model"))
    found = next(
        filter(None, map(image_processing_auto.IMAGE_PROCESSOR_MAPPING_NAMES.get, kinds)), None
    )
    if found is None:
        return {}
    names = found.values() if isinstance(found, dict) else found
    name = next(name for name in sorted(filter(None, names), key=len))
    processor: dict[str, Any] = getattr(_import_transformers(), name)().to_dict()
    # Without weights, the order of channels does not matter.
    return {key: value for key, value in processor.items() if key != "do_flip_channel_order"}


def _read_processor(config: Path) -> dict[str, Any]:
    """The image processor saved in a config's folder; empty if there is none."""
    separate, combined = (
        config.with_name(name) for name in ("preprocessor_config.json", "processor_config.json")
    )
    if separate.is_file():
        return _read(separate)
    return dict(_read(combined).get("image_processor", {})) if combined.is_file() else {}


def _read(path: Path) -> dict[str, Any]:
    try:
        fields = read_json(path)
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{path} is no config: it holds a {type(fields).__name__}.")
    return fields


def _refuse_weights(name: str, weights: str | None) -> None:
    if weights is not None:
        raise ValueError(
            f"`weights` is {weights!r}, but hf/{name} is an architecture without weights: give the "
            "path of a file, or name a folder or a model of the hub as the backbone."
        )


def _download_from_hub(name: str, *, with_weights: bool) -> Path:
    """Download a model of the hub, unless cached; return its folder."""
    transformers = _import_transformers()
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


def _import_transformers() -> Any:
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "An `hf/` backbone needs transformers: pip install 'lit-finetune[huggingface]'",
            name="transformers",
        ) from error
    return transformers

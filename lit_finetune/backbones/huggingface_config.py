"""The configs and image processors of Hugging Face networks: read, checked, converted."""

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from lit_finetune._errors import nearest
from lit_finetune.backbones.image_processor import processor_data_config
from lit_finetune.files.json import read_json
from lit_finetune.images.data_config import DataConfig

_MAX_LABELS = 1 << 20
_NON_NETWORK_FIELDS = {"architectures", "auto_map", "dtype", "torch_dtype", "transformers_version"}


def refuse_unsafe_fields(name: str, fields: Mapping[str, Any]) -> None:
    """Refuse a config that would run code or a very long loop, or describes quantised weights.

    Raises:
        ValueError: Names the field.
    """
    _refuse_kernels(name, fields)
    _refuse_quantised(name, fields)
    _refuse_huge_numbers(name, fields)


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


def make_config(name: str, fields: Mapping[str, Any], kwargs: Mapping[str, Any]) -> Any:
    """The config object of a network, with `kwargs` overriding some of its fields.

    Raises:
        ValueError: The model type is unknown or no classifier, or a field is invalid.
    """
    mapping = import_transformers().CONFIG_MAPPING
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
        raise ValueError(f"The config of {name} is invalid: {error_reason(error)}") from error


def error_reason(error: Exception) -> str:
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
    transformers = import_transformers()
    classifiers = transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    if kind not in classifiers and kind not in transformers.MODEL_MAPPING:
        built = ", ".join(map(str, fields.get("architectures") or ())) or "no classifier"
        raise ValueError(
            f"{name} is of the type {fields['model_type']!r} ({built}), which is no image"
            " classifier, nor a network that could become one. Use its backbone's own model."
        )


def plain_fields(config: Any) -> dict[str, Any]:
    """The fields of a config that its class defines, as plain data."""
    known = {"num_labels", *type(config)().to_dict()} - _NON_NETWORK_FIELDS - {"model_type"}
    fields = json.loads(config.to_json_string(use_diff=True))
    return {key: value for key, value in fields.items() if key in known}


def make_data_config(
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
    processor: dict[str, Any] = getattr(import_transformers(), name)().to_dict()
    # Without weights, the order of channels does not matter.
    return {key: value for key, value in processor.items() if key != "do_flip_channel_order"}


def read_processor(config: Path) -> dict[str, Any]:
    """The image processor saved in a config's folder; empty if there is none."""
    separate, combined = (
        config.with_name(name) for name in ("preprocessor_config.json", "processor_config.json")
    )
    if separate.is_file():
        return read_fields(separate)
    return dict(read_fields(combined).get("image_processor", {})) if combined.is_file() else {}


def read_fields(path: Path) -> dict[str, Any]:
    """The fields of a config file.

    Raises:
        ValueError: It is no JSON, or no mapping.
    """
    try:
        fields = read_json(path)
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{path} is no config: it holds a {type(fields).__name__}.")
    return fields


def import_transformers() -> Any:
    """The package, imported when it is used; an error names the extra."""
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "An `hf/` backbone needs transformers: pip install 'lit-finetune[huggingface]'",
            name="transformers",
        ) from error
    return transformers

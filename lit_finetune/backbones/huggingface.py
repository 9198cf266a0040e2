"""The image classifiers and vision towers of Hugging Face transformers.

Code that lies beside a model on the hub is never run.
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
"""Where transformers keeps weights in a folder, the best first."""

_UNUSED: Mapping[str, Mapping[str, type[nn.Module]]] = {
    "clip": {"vision_model.post_layernorm": nn.Identity},
    "metaclip_2": {"vision_model.post_layernorm": nn.Identity},
    "siglip": {"vision_model.head": nn.Identity},
}
"""What only pooled outputs go through, where the classifier takes the mean of all tokens."""

_MOST_LABELS = 1 << 20
_NOT_OF_THE_NETWORK = {"architectures", "auto_map", "dtype", "torch_dtype", "transformers_version"}


def create(name: str, weights: str | None, kwargs: dict[str, Any]) -> Backbone:
    """Build a network of transformers, with new weights; those of a folder are its `weights_file`.

    Args:
        name: A model type (`vit`), which has no weights; a folder, whose weights are taken; a
            `config.json`, which is a folder's network without its weights; or a name on the hub.
        weights: `pretrained` for the weights of a folder (the default there) or of the hub.
        kwargs: Fields of the network's config, in the place of what the config says.
    """
    transformers = _import_transformers()
    if name in transformers.CONFIG_MAPPING:
        _refuse_weights(name, weights)
        return _build(f"hf/{name}", {"model_type": name}, {}, kwargs)
    path = Path(name).expanduser()
    if path.is_file():
        _refuse_weights(name, weights)
        return _build(f"hf/{name}", _read(path), _processor_beside(path), kwargs)
    if weights is not None:
        one_of(weights, ["pretrained"], f"weights of hf/{name}")
    if path.is_dir():
        return _from_folder(f"hf/{name}", path, kwargs, with_weights=True)
    folder = _from_hub(name, with_weights=weights is not None)
    return _from_folder(f"hf/{name}", folder, kwargs, with_weights=weights is not None)


def _from_folder(
    name: str, folder: Path, kwargs: dict[str, Any], *, with_weights: bool
) -> Backbone:
    config = folder / "config.json"
    if not config.is_file():
        have = ", ".join(sorted(file.name for file in folder.iterdir())[:10])
        raise FileNotFoundError(f"{folder} has no `config.json`. It has: {have or 'no files'}.")
    file = next((folder / file for file in WEIGHTS_FILES if (folder / file).is_file()), None)
    if with_weights and file is None:
        raise FileNotFoundError(
            f"{folder} has none of {', '.join(WEIGHTS_FILES)}. For the network without its "
            f"weights, name the config: `hf/{config}`."
        )
    weights_file = file if with_weights else None
    return _build(name, _read(config), _processor_beside(config), kwargs, weights_file)


def _build(
    name: str,
    fields: Mapping[str, Any],
    processor: Mapping[str, Any],
    kwargs: Mapping[str, Any],
    weights_file: Path | None = None,
) -> Backbone:
    """The network of a config's fields, with `kwargs` in the place of some of them."""
    _refuse_kernels(name, fields)
    _refuse_quantised(name, fields)
    _refuse_huge_numbers(name, fields)
    sizes = {**fields, **kwargs}
    told = f"The config of {name} describes a network, with {largest_number(sizes, sizes)}"
    with hub_offline(), limited_memory(told):
        return _built(name, _config(name, fields, kwargs), processor, kwargs, weights_file)


def _built(
    name: str,
    config: Any,
    processor: Mapping[str, Any],
    kwargs: Mapping[str, Any],
    weights_file: Path | None,
) -> Backbone:
    factory, has_head = _class_of(name, config)
    rebuild_args = f"hf/{config.model_type}", _plain(config)
    try:
        data_config = _data_config(config, processor, kwargs)
    except (TypeError, ValueError, AttributeError, KeyError, OverflowError) as error:
        raise ValueError(f"The image processor of {name} cannot be used: {error}") from error
    try:
        network: nn.Module = factory(config)
    except Exception as error:  # a config's fields may be wrong together in any way
        raise ValueError(f"{name} cannot be built from its config: {_why(error)}") from error
    _drop_what_is_not_used(network, config.model_type)
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
    """Refuse a config that asks for attention computed by a program from the hub."""
    for key, value in fields.items() if isinstance(fields, Mapping) else ():
        asked = value.values() if isinstance(value, Mapping) else [value]
        if key.strip("_").startswith("attn_implementation") and any("/" in str(a) for a in asked):
            raise ValueError(
                f"The config of {name} asks for a program from the hub, `{key}` {value!r}, which is"
                " never run: remove that field from it."
            )
        _refuse_kernels(name, value)


def _refuse_quantised(name: str, fields: Mapping[str, Any]) -> None:
    """Refuse a network whose weights are whole numbers, which nothing can train."""
    if how := fields.get("quantization_config"):
        kind = how.get("quant_method") if isinstance(how, Mapping) else how
        raise ValueError(
            f"The weights of {name} are quantised (`quantization_config`: {str(kind)[:100]}) and"
            " cannot be fine-tuned. Use the model that they were made from, in float32 or bfloat16."
        )


def _refuse_huge_numbers(name: str, fields: Any) -> None:
    """Refuse a config with a number larger than in any network, before it is counted up to."""
    for key, value in fields.items() if isinstance(fields, Mapping) else ():
        numbers = value if isinstance(value, list) else [value]
        for number in numbers:
            if type(number) is int and number > (_MOST_LABELS if key == "num_labels" else 1 << 24):
                raise ValueError(f"The config of {name} says `{key}` {number:,}: it is damaged.")
        _refuse_huge_numbers(name, value)


def _drop_what_is_not_used(network: nn.Module, model_type: str) -> None:
    """Take out what no logits depend on: without a gradient it would be an error under DDP."""
    for module in network.modules():
        if isinstance(vars(module)["_parameters"].get("mask_token"), nn.Parameter):
            setattr(module, "mask_token", None)  # noqa: B010  # typed as a module or a tensor
    for path, plain in _UNUSED.get(model_type, {}).items():
        network.set_submodule(path, plain())


def _interpolate_positions(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
    """Let pictures of any size in; those of the network's own size go through unchanged."""
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
    merged = {**fields, **{key: _merged(fields.get(key), value) for key, value in kwargs.items()}}
    if "num_labels" in kwargs and "id2label" not in kwargs:
        merged = {k: v for k, v in merged.items() if k not in ("id2label", "label2id")}
    try:
        return mapping[kind].from_dict({k: v for k, v in merged.items() if k != "model_type"})
    except Exception as error:  # transformers has exceptions of its own for it
        raise ValueError(f"The config of {name} cannot be: {_why(error)}") from error


def _why(error: Exception) -> str:
    """What is wrong with a config, without advice to connect to the hub."""
    text = str(error)
    if "HF_HUB_OFFLINE" in text or "offline mode" in text:
        return (
            "it names another model of the hub for a part of the network, and nothing is fetched"
            " for a local config. Use a network that its config describes whole"
        )
    return text


def _merged(before: Any, value: Any) -> Any:
    """A field, or of one that has fields itself, as `vision_config`, those that are given."""
    both = isinstance(before, Mapping) and isinstance(value, Mapping)
    return {**before, **value} if both else value


def _refuse_no_classifier(name: str, kind: Any, fields: Mapping[str, Any]) -> None:
    """Refuse what transformers has neither as a classifier of pictures nor as a plain network."""
    transformers = _import_transformers()
    classifiers = transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    if kind not in classifiers and kind not in transformers.MODEL_MAPPING:
        built = ", ".join(map(str, fields.get("architectures") or ())) or "no classifier"
        raise ValueError(
            f"{name} is of the type {fields['model_type']!r} ({built}), which is no image"
            " classifier, nor a network that could become one. Use its backbone's own model."
        )


def _class_of(name: str, config: Any) -> tuple[Any, bool]:
    """The class that builds the network, and whether that has a head."""
    transformers = _import_transformers()
    for mapping, has_head in (
        (transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, True),
        (transformers.MODEL_MAPPING, False),
    ):
        if type(config) in mapping:
            found = mapping[type(config)]
            factory = found[0] if isinstance(found, tuple) else found  # others have two heads
            if factory.main_input_name == "pixel_values" and config.model_type != "siglip2":
                return factory, has_head
    raise ValueError(
        f"{name} is of the type {config.model_type!r}, which does not take pictures as "
        "`pixel_values` alone. Of networks for text and pictures, use the part for pictures, as "
        "`clip_vision_model`."
    )


def _plain(config: Any) -> dict[str, Any]:
    """The fields of a config as plain data, those that its class knows."""
    known = {"num_labels", *type(config)().to_dict()} - _NOT_OF_THE_NETWORK - {"model_type"}
    fields = json.loads(config.to_json_string(use_diff=True))
    return {key: value for key, value in fields.items() if key in known}


def _data_config(
    config: Any, processor: Mapping[str, Any], kwargs: Mapping[str, Any]
) -> DataConfig:
    """What pictures the network expects: of the processor's size, or else of the config's."""
    data_config = processor_data_config(processor or _default_processor(config))
    if processor and "image_size" not in {**kwargs, **kwargs.get("vision_config", {})}:
        return data_config
    size = getattr(getattr(config, "vision_config", config), "image_size", 224)
    return data_config.resized(size if isinstance(size, int) else tuple(size))


def _default_processor(config: Any) -> dict[str, Any]:
    """The image processor that transformers has for such a network, where none was saved."""
    names_of = import_module("transformers.models.auto.image_processing_auto")
    kinds = (config.model_type, config.model_type.removesuffix("_vision_model"))
    found = next(filter(None, map(names_of.IMAGE_PROCESSOR_MAPPING_NAMES.get, kinds)), None)
    if found is None:
        return {}
    names = found.values() if isinstance(found, dict) else found
    name = next(name for name in sorted(filter(None, names), key=len))
    processor: dict[str, Any] = getattr(_import_transformers(), name)().to_dict()
    # Without weights it does not matter which channel comes first.
    return {key: value for key, value in processor.items() if key != "do_flip_channel_order"}


def _processor_beside(config: Path) -> dict[str, Any]:
    """What was saved of the image processor in a config's folder, if anything was."""
    alone, together = (
        config.with_name(name) for name in ("preprocessor_config.json", "processor_config.json")
    )
    if alone.is_file():
        return _read(alone)
    return dict(_read(together).get("image_processor", {})) if together.is_file() else {}


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


def _from_hub(name: str, *, with_weights: bool) -> Path:
    """The folder that a model of the hub was downloaded to, now or before."""
    transformers = _import_transformers()
    first, _, last = name.rpartition("/")
    is_local = first != "" and Path(first).is_dir()
    is_path = name.startswith((".", "/", "~")) or "/" in first or is_local
    if first and is_path and (parent := Path(first).expanduser()).is_dir():
        there = [path.name for path in parent.iterdir() if path.is_dir()]
        raise FileNotFoundError(f"hf/{name}: there is no folder {name!r}.{nearest(last, there)}")
    near = nearest(name, transformers.CONFIG_MAPPING) or (
        " A backbone of Hugging Face is `hf/` and a model type (`vit`), a folder, a `config.json` "
        "or a name on the hub (`google/vit-base-patch16-224`)."
    )
    if is_path or "/" not in name:
        raise FileNotFoundError(f"hf/{name}: there is no model type and no folder {name!r}.{near}")
    from huggingface_hub import snapshot_download

    # Not all that is there: many models keep their weights in three formats.
    for weights in (("model*.safetensors*",), ("pytorch_model*.bin*",)) if with_weights else ((),):
        wanted = ["config.json", "p*processor_config.json", *weights]
        try:
            folder = Path(snapshot_download(name, allow_patterns=wanted))
        except Exception as error:  # of the connection, or the hub's answer, in many classes
            raise ConnectionError(
                f"hf/{name}: there is no folder {name!r} here, and the hub gave no such model"
                f" ({type(error).__name__}: {str(error).strip().splitlines()[0][:200]}): name a"
                " folder that holds a `config.json` and `model.safetensors`, or a model of the hub"
                " where there is a network."
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

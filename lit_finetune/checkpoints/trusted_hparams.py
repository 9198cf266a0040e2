"""Decide which names in a checkpoint's hyper-parameters may be used, and refuse the others.

A checkpoint may not be trusted. Its hyper-parameters may build networks of torchvision, timm and
transformers by name. Nothing else that they name is imported, fetched or read, unless the user
names it in a keyword argument or a configuration.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_HPARAMS_KEYS = ("hparams", "module_arguments", "hyper_parameters")
"""The keys of hyper-parameters in a checkpoint, as in Lightning; the last ones win."""
_IMPORT_KEYS = ("class_path", "_class_path", "_instantiator", "_target_")
"""Keys whose values jsonargparse, Lightning or Hydra import."""
_DROPPED_ARGUMENTS = frozenset(
    {
        *("weights", "weights_backbone", "pretrained", "progress"),  # torchvision
        *("checkpoint_path", "cache_dir", "file", "url", "hf_hub_id", "custom_load"),  # timm
        *("state_dict", "pretrained_model_args"),
        *("use_pretrained_backbone", "name_or_path", "_name_or_path"),  # transformers
        *("auto_map", "trust_remote_code", "code_revision", "quantization_config", "use_kernels"),
    }
)
"""Arguments of networks that fetch, read or run something; they are dropped."""
_NETWORK_KEYS = ("backbone", "architecture")
"""Fields of a transformers config that name a timm network, which may be on the hub."""
_TRUSTED_NAMES: set[str] = set()
"""The backbones that the user's program has passed to a classifier."""
_TIMM_NAME = re.compile(r"\w+(\.[\w-]+)?", re.ASCII)
_PLAIN = (str, int, float, bool, type(None))
_MAX_VALUES = 100_000


def trust_name(backbone: object) -> None:
    """Trust a backbone that the user's program has named."""
    if isinstance(backbone, str):
        _TRUSTED_NAMES.add(backbone)


def read_hparams(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The hyper-parameters in a checkpoint, as Lightning reads them.

    >>> read_hparams({"hparams": {"lr": 1}, "hyper_parameters": {"num_classes": 2}})
    {'lr': 1, 'num_classes': 2}

    Raises:
        ValueError: They are not a mapping from names to values.
    """
    hparams: dict[str, Any] = {}
    for key in _HPARAMS_KEYS:
        part = checkpoint.get(key) or {}
        if not isinstance(part, Mapping) or not all(isinstance(name, str) for name in part):
            raise ValueError(f"The checkpoint's `{key}` are no hyper-parameters by name.")
        hparams |= part
    return hparams


def trusted_hparams(
    hparams: Mapping[str, Any],
    *,
    overrides: Iterable[str] = (),
    accepted: Iterable[str] | None = None,
) -> dict[str, Any]:
    """The hyper-parameters of a checkpoint, without those that fetch, read or import something.

    >>> trusted_hparams({"backbone": "resnet18", "weights": "DEFAULT"})
    {'backbone': 'resnet18', 'weights': None}

    Args:
        hparams: The checkpoint's hyper-parameters.
        overrides: The names of those that the user overrides; they are left out.
        accepted: The names of those that the class accepts; None for all.

    Raises:
        ValueError: Some name something that only the user may name; the message says how.
    """
    selected = {
        key: value
        for key, value in hparams.items()
        if key not in overrides and (accepted is None or key in accepted)
    }
    refused = {
        key: reason
        for key, value in selected.items()
        for reason in _refusal_reasons(key, value)
        if reason
    }
    if refused:
        raise ValueError(_refusal(refused, selected))
    trusted = {key: _drop_sources(key, value) for key, value in selected.items()}
    if default := _no_fetch_arguments(trusted.get("backbone")):
        trusted["backbone_kwargs"] = {**(trusted.get("backbone_kwargs") or {}), **default}
    return trusted


def known_backbone(name: str) -> bool:
    """Whether a name is a network of torchvision, timm or transformers, and no path, hub or module.

    >>> [known_backbone(name) for name in ("resnet18", "timm/resnet18.a1_in1k", "shutil.copy")]
    [True, True, False]
    >>> [known_backbone(name) for name in ("timm/hf-hub:a/b", "hf/a/b", "./net", "https://a/b")]
    [False, False, False, False]
    """
    if name.startswith("timm/"):
        return bool(_TIMM_NAME.fullmatch(name.removeprefix("timm/")))
    if name.startswith("hf/"):
        return _is_model_type(name.removeprefix("hf/"))
    return bool(re.fullmatch(r"\w+", name, re.ASCII))


def _is_model_type(name: str) -> bool:
    """Whether transformers knows a model type; an unknown name may be a folder."""
    if not re.fullmatch(r"[\w-]+(\.[\w-]+)*", name, re.ASCII):
        return False
    try:
        from transformers import CONFIG_MAPPING
    except ModuleNotFoundError:
        return True  # building then fails with an error on the missing package
    return name in CONFIG_MAPPING


def _no_fetch_arguments(backbone: Any) -> dict[str, Any]:
    """The arguments that prevent a transformers network from fetching weights for a part of it."""
    if not isinstance(backbone, str) or not backbone.startswith("hf/"):
        return {}
    try:
        from transformers import CONFIG_MAPPING
    except ModuleNotFoundError:
        return {}
    config = CONFIG_MAPPING[backbone.removeprefix("hf/")]()
    fetches = getattr(config, "use_pretrained_backbone", False)  # before transformers 5
    return {"use_pretrained_backbone": False} if fetches else {}


def _refusal_reasons(key: str, value: Any) -> Iterator[str]:
    """The reasons why a hyper-parameter is refused; empty ones do not count."""
    if key == "backbone":
        yield "" if value is None else _backbone_reason(value)
    elif key == "head":
        is_word = isinstance(value, str) and "." not in value
        yield "" if value is None or is_word else _unbuildable(value)
    elif key in ("optimizer", "lr_scheduler"):
        return  # not needed for loading
    elif key == "backbone_kwargs":
        yield "" if value is None or isinstance(value, Mapping) else _unbuildable(value)
        yield from _kwargs_reasons(value)
    yield from _import_reasons(key, value)


def _backbone_reason(value: Any) -> str:
    if not isinstance(value, str):
        return _unbuildable(value)
    if value in _TRUSTED_NAMES or known_backbone(value):
        return ""
    kind = "an import path, and " if re.fullmatch(r"\w+(\.\w+)+", value) else ""
    return f"{_display(value)} is {kind}no name of a network of torchvision, timm or transformers"


def _import_reasons(key: str, value: Any) -> Iterator[str]:
    """The classes to import and the other networks that a value names, at any depth."""
    for name, inner in _entries(value):
        if name in _IMPORT_KEYS and inner is not None:
            yield f"{name!r} names {_display(inner)}, which would be imported"
        if name == "backbone" and key != "backbone_kwargs" and isinstance(inner, str):
            yield _backbone_reason(inner)


def _kwargs_reasons(value: Any) -> Iterator[str]:
    """What a network's arguments would import or fetch, besides the dropped ones."""
    if not _is_plain(value):
        yield "holds something other than plain data"
    for key, inner in _entries(value):
        if key in _NETWORK_KEYS and isinstance(inner, str) and not _TIMM_NAME.fullmatch(inner):
            yield f"{key!r} is {_display(inner)}, which is no name of timm"
        if "implementation" in key and re.search("[/:]", str(inner)):
            yield f"{key!r} is {_display(inner)}, which transformers would fetch and run"


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """All keys and values of mappings, at any depth; a value that contains itself only once."""
    pending, seen = [value], {id(value)}
    for each in pending:  # it grows; no recursion, since values may be nested very deep
        if isinstance(each, Mapping):
            yield from ((str(key), inner) for key, inner in each.items())
        children = _children(each)
        pending += [inner for inner in children if id(inner) not in seen]
        seen |= set(map(id, children))


def _children(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple) else []


def _is_plain(value: Any) -> bool:
    """Whether a value is plain data, and no larger than a configuration may be."""
    pending = [value]
    for each in pending:  # shared values count each time: they would be built each time
        if not isinstance(each, (*_PLAIN, Mapping, list, tuple)) or len(pending) > _MAX_VALUES:
            return False
        pending += _children(each)
    return True


def _drop_sources(key: str, value: Any) -> Any:
    """A value without weights to fetch or read, and without objects that loading does not need."""
    if key == "weights" or (key in ("optimizer", "lr_scheduler") and not isinstance(value, str)):
        return None
    if key == "backbone_kwargs":
        return _drop_arguments(value)
    if isinstance(value, Mapping) and "backbone" in value:  # a class with one argument for all
        return {name: _drop_sources(name, inner) for name, inner in value.items()}
    return value


def _drop_arguments(value: Any) -> Any:
    if isinstance(value, Mapping):
        kept = {
            key: inner for key, inner in value.items() if key not in _DROPPED_ARGUMENTS or not inner
        }
        return {key: _drop_arguments(inner) for key, inner in kept.items()}
    return type(value)(map(_drop_arguments, value)) if type(value) in (list, tuple) else value


def _refusal(refused: Mapping[str, str], selected: Mapping[str, Any]) -> str:
    lines = "\n".join(f"  `{key}`: {reason}." for key, reason in refused.items())
    keys = ", ".join(f"{key}={_repeat(selected[key])}" for key in refused)
    name = str(selected.get("backbone")) if "backbone" in refused else ""
    is_word = re.fullmatch(r"[\w./:-]+", name, re.ASCII)
    command = f"; on the command line, `--model.backbone {name}`" if is_word else ""
    return (
        f"The checkpoint names something that loading would import, fetch or read:\n{lines}\n"
        "It is not trusted with that. If you know and trust it, say it yourself:"
        f" `load_from_checkpoint(file, {keys})`, with the name, the class or the module{command}."
    )


def _repeat(value: Any) -> str:
    return _display(value) if isinstance(value, str) else "..."


def _unbuildable(value: Any) -> str:
    return f"{_display(value)} is nothing that can be built by name"


def _display(value: Any) -> str:
    """A value from a file, shortened for a message."""
    text = repr(value) if isinstance(value, str) else f"a {type(value).__name__}"
    return f"{text[:80]}…'" if len(text) > 81 else text

"""Which of the names in a checkpoint's hyper-parameters are followed, and which are refused.

A checkpoint may come from somebody else. Its hyper-parameters build networks of torchvision, timm
and transformers by their names. Nothing else that they name is imported, fetched or read: that
takes the user's own word, which is a keyword argument or a configuration.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_HPARAMS = ("hparams", "module_arguments", "hyper_parameters")
"""Where Lightning finds hyper-parameters in a checkpoint; the last ones count."""
_IMPORTED = ("class_path", "_class_path", "_instantiator", "_target_")
"""Keys whose value is imported by jsonargparse, Lightning or Hydra."""
_NEVER_NEEDED = frozenset(
    {
        *("weights", "weights_backbone", "pretrained", "progress"),  # torchvision
        *("checkpoint_path", "cache_dir", "file", "url", "hf_hub_id", "custom_load"),  # timm
        *("state_dict", "pretrained_model_args"),
        *("use_pretrained_backbone", "name_or_path", "_name_or_path"),  # transformers
        *("auto_map", "trust_remote_code", "code_revision", "quantization_config", "use_kernels"),
    }
)
"""Arguments of networks that fetch, read or run something; a checkpoint has its own weights."""
_NAMES_NETWORK = ("backbone", "architecture")
"""Fields of a transformers config that name a network of timm, which may be on the hub."""
_SAID: set[str] = set()
"""The names that this program has given to a classifier itself: they are the user's word."""
_TIMM_NAME = re.compile(r"\w+(\.[\w-]+)?", re.ASCII)
_PLAIN = (str, int, float, bool, type(None))
_MOST_VALUES = 100_000


def trust_name(backbone: object) -> None:
    """Take note of a backbone that the user's program, not a file, has named."""
    if isinstance(backbone, str):
        _SAID.add(backbone)


def read_hparams(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The hyper-parameters that Lightning would find in a checkpoint.

    >>> read_hparams({"hparams": {"lr": 1}, "hyper_parameters": {"num_classes": 2}})
    {'lr': 1, 'num_classes': 2}

    Raises:
        ValueError: They are no mapping from names to values.
    """
    found: dict[str, Any] = {}
    for key in _HPARAMS:
        part = checkpoint.get(key) or {}
        if not isinstance(part, Mapping) or not all(isinstance(name, str) for name in part):
            raise ValueError(f"The checkpoint's `{key}` are no hyper-parameters by name.")
        found |= part
    return found


def trusted_hparams(
    hparams: Mapping[str, Any], *, said: Iterable[str] = (), taken: Iterable[str] | None = None
) -> dict[str, Any]:
    """The hyper-parameters of a checkpoint without what would fetch, read or import anything.

    >>> trusted_hparams({"backbone": "resnet18", "weights": "DEFAULT"})
    {'backbone': 'resnet18', 'weights': None}

    Args:
        hparams: What the checkpoint says.
        said: The names of those that the user gives anew: the checkpoint's are left out.
        taken: The names of those that the class takes; None for all.

    Raises:
        ValueError: Some name what only the user may name; the message says which, and how.
    """
    wanted = {
        key: value
        for key, value in hparams.items()
        if key not in said and (taken is None or key in taken)
    }
    refused = {
        key: reason for key, value in wanted.items() for reason in _reasons(key, value) if reason
    }
    if refused:
        raise ValueError(_refusal(refused, wanted))
    trusted = {key: _without_sources(key, value) for key, value in wanted.items()}
    if default := _fetched_by_default(trusted.get("backbone")):
        trusted["backbone_kwargs"] = {**(trusted.get("backbone_kwargs") or {}), **default}
    return trusted


def known_backbone(name: str) -> bool:
    """Whether a name is one of torchvision, timm or transformers, and no path, hub or module.

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
    """Whether transformers knows a model type; a name that it does not know may be a folder."""
    if not re.fullmatch(r"[\w-]+(\.[\w-]+)*", name, re.ASCII):
        return False
    try:
        from transformers import CONFIG_MAPPING
    except ModuleNotFoundError:
        return True  # nothing can be built then, and the error says what is missing
    return name in CONFIG_MAPPING


def _fetched_by_default(backbone: Any) -> dict[str, Any]:
    """The arguments that keep a network of transformers from fetching weights for a part of it."""
    if not isinstance(backbone, str) or not backbone.startswith("hf/"):
        return {}
    try:
        from transformers import CONFIG_MAPPING
    except ModuleNotFoundError:
        return {}
    config = CONFIG_MAPPING[backbone.removeprefix("hf/")]()
    fetches = getattr(config, "use_pretrained_backbone", False)  # before transformers 5
    return {"use_pretrained_backbone": False} if fetches else {}


def _reasons(key: str, value: Any) -> Iterator[str]:
    """Why a hyper-parameter is not to be followed."""
    if key == "backbone":
        yield "" if value is None else _backbone_reason(value)
    elif key == "head":
        is_word = isinstance(value, str) and "." not in value
        yield "" if value is None or is_word else _other(value)
    elif key in ("optimizer", "lr_scheduler"):
        return  # loading needs neither
    elif key == "backbone_kwargs":
        yield "" if value is None or isinstance(value, Mapping) else _other(value)
        yield from _kwargs_reasons(value)
    yield from _import_reasons(key, value)


def _backbone_reason(value: Any) -> str:
    if not isinstance(value, str):
        return _other(value)
    if value in _SAID or known_backbone(value):
        return ""
    what = "an import path, and " if re.fullmatch(r"\w+(\.\w+)+", value) else ""
    return f"{_shown(value)} is {what}no name of a network of torchvision, timm or transformers"


def _import_reasons(key: str, value: Any) -> Iterator[str]:
    """Where a value, at any depth, names a class to be imported or another network."""
    for name, inner in _entries(value):
        if name in _IMPORTED and inner is not None:
            yield f"{name!r} names {_shown(inner)}, which would be imported"
        if name == "backbone" and key != "backbone_kwargs" and isinstance(inner, str):
            yield _backbone_reason(inner)


def _kwargs_reasons(value: Any) -> Iterator[str]:
    """What arguments of a network would import or fetch beside what is left out anyway."""
    if not _is_plain(value):
        yield "holds what is no plain data"
    for key, inner in _entries(value):
        if key in _NAMES_NETWORK and isinstance(inner, str) and not _TIMM_NAME.fullmatch(inner):
            yield f"{key!r} is {_shown(inner)}, which is no name of timm"
        if "implementation" in key and re.search("[/:]", str(inner)):
            yield f"{key!r} is {_shown(inner)}, which transformers would fetch and run"


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """All keys and values of mappings, at any depth; those of a value that holds itself once."""
    waiting, seen = [value], {id(value)}
    for each in waiting:  # it grows; no recursion, for a file may hold a very deep value
        if isinstance(each, Mapping):
            yield from ((str(key), inner) for key, inner in each.items())
        inside = _inside(each)
        waiting += [inner for inner in inside if id(inner) not in seen]
        seen |= set(map(id, inside))


def _inside(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple) else []


def _is_plain(value: Any) -> bool:
    """Whether a value is data, and no larger than a configuration is."""
    waiting = [value]
    for each in waiting:  # what is shared counts each time: it would be built each time
        if not isinstance(each, (*_PLAIN, Mapping, list, tuple)) or len(waiting) > _MOST_VALUES:
            return False
        waiting += _inside(each)
    return True


def _without_sources(key: str, value: Any) -> Any:
    """A value without what would fetch or read weights, or build what loading does not need."""
    if key == "weights" or (key in ("optimizer", "lr_scheduler") and not isinstance(value, str)):
        return None
    if key == "backbone_kwargs":
        return _dropped(value)
    if isinstance(value, Mapping) and "backbone" in value:  # a class that takes all in one
        return {name: _without_sources(name, inner) for name, inner in value.items()}
    return value


def _dropped(value: Any) -> Any:
    if isinstance(value, Mapping):
        kept = {key: inner for key, inner in value.items() if key not in _NEVER_NEEDED or not inner}
        return {key: _dropped(inner) for key, inner in kept.items()}
    return type(value)(map(_dropped, value)) if type(value) in (list, tuple) else value


def _refusal(refused: Mapping[str, str], wanted: Mapping[str, Any]) -> str:
    lines = "\n".join(f"  `{key}`: {reason}." for key, reason in refused.items())
    keys = ", ".join(f"{key}={_again(wanted[key])}" for key in refused)
    name = str(wanted.get("backbone")) if "backbone" in refused else ""
    is_word = re.fullmatch(r"[\w./:-]+", name, re.ASCII)
    command = f"; on the command line, `--model.backbone {name}`" if is_word else ""
    return (
        f"The checkpoint names what loading would have to import, fetch or read:\n{lines}\n"
        "A file's word is not enough for that. If you know and trust it, say it yourself:"
        f" `load_from_checkpoint(file, {keys})`, with the name, the class or the module{command}."
    )


def _again(value: Any) -> str:
    return _shown(value) if isinstance(value, str) else "..."


def _other(value: Any) -> str:
    return f"{_shown(value)} is nothing that can be built by name"


def _shown(value: Any) -> str:
    """A value of a file as a message can show it."""
    text = repr(value) if isinstance(value, str) else f"a {type(value).__name__}"
    return f"{text[:80]}…'" if len(text) > 81 else text

"""Whether a checkpoint is made as Lightning and this package make one, part by part."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from packaging.version import InvalidVersion, Version
from torch import Tensor

OWN, RUN, MONITORED = "lit_finetune", "lit_finetune_run", "lit_finetune_monitored"
_LARGEST = 2**63
_TENSORS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "sum")
"""What torch's optimizers keep of each parameter under these names."""
_NUMBER, _SEQUENCE = float | int, list | tuple
_KINDS: tuple[Any, ...] = (Mapping, _SEQUENCE, str, Tensor, _NUMBER)


def damaged_part(content: Mapping[Any, Any]) -> str:
    """The part of a checkpoint that cannot be what should stand there; "" where all can.

    What a callback or an optimizer knows is not looked into: only they can tell.

    >>> damaged_part({"state_dict": {}, "callbacks": ["best"]})
    'callbacks'

    Args:
        content: Plain data; what it leaves out is not missed.
    """
    unnamed = (str(key)[:40] for key in content if not isinstance(key, str))
    wrong = (key for key, can_be in _PARTS.items() if key in content and not can_be(content[key]))
    return next(unnamed, "") or next(wrong, "")


def other_form(ours: Any, found: Any, place: str = "", *, takes_none: bool = True) -> str:
    """Where a state that was found is of another form than one of ours; "" if nowhere.

    What only one of the two has, or what is None in ours, is not looked at.

    Args:
        ours: A state as it is in this run.
        found: The one in a checkpoint.
        place: Where the two stand.
        takes_none: Whether None may be found in the place of anything.

    >>> other_form({"wait": 0, "best": {"score": 0.1}}, {"wait": 2, "best": {"score": "high"}})
    'best.score'
    """
    if ours is None or (found is None and (takes_none or isinstance(ours, bool))):
        return ""
    kind: Any = next((kind for kind in _KINDS if isinstance(ours, kind)), None)
    if kind is None:
        return ""
    is_scalar = kind is _NUMBER and isinstance(found, Tensor) and found.numel() == 1
    if not is_scalar and not isinstance(found, kind):
        return place or "state"
    pairs: list[tuple[Any, Any, Any]] = []
    if kind is Mapping:
        pairs = [(key, ours[key], found[key]) for key in ours if key in found]
    elif kind is _SEQUENCE:
        pairs = [(number, *both) for number, both in enumerate(zip(ours, found, strict=False))]
    places = (
        other_form(a, b, f"{place}.{key}".strip("."), takes_none=takes_none) for key, a, b in pairs
    )
    return next(filter(None, places), "")


def seed_in(state: Any) -> int | None:
    """The seed of a run's order, in what a data module noted.

    Raises:
        ValueError: There is none.
    """
    if not isinstance(state, Mapping) or not _is_seed(state.get("run_seed", "")):
        raise ValueError(
            "What the checkpoint says of the order of pictures is damaged: it has no `run_seed`."
            " Start anew from its weights alone, passed as `weights`."
        )
    seed: int | None = state["run_seed"]
    return seed


def _is_version(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(Version(value))
    except InvalidVersion:
        return False


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _LARGEST


def _is_seed(value: Any) -> bool:
    return value is None or (type(value) is int and abs(value) < 2 * _LARGEST)


def _are_weights(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and (isinstance(each, Tensor) or name.endswith("_extra_state"))
        for name, each in value.items()
    )


def _are_states(value: Any) -> bool:
    """Whether a value is a mapping from names to what each of them knows."""
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and isinstance(each, Mapping) for name, each in value.items()
    )


def _are_optimizers(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_optimizer, value))


def _is_optimizer(value: Any) -> bool:
    if not isinstance(value, Mapping) or not isinstance(value.get("state"), Mapping):
        return False
    groups = value.get("param_groups")
    return (
        isinstance(groups, list)
        and all(isinstance(group, Mapping) for group in groups)
        and all(isinstance(group.get("params"), list) for group in groups)
        and _are_numbers_or_names([each for group in groups for each in group["params"]])
        and all(map(_is_of_parameter, value["state"].values()))
    )


def _are_numbers_or_names(parameters: list[Any]) -> bool:
    """Whether parameters are called by numbers, or, in a sharded run, by names; each once."""
    kinds = {type(each) for each in parameters}
    return kinds in (set(), {int}, {str}) and len(set(parameters)) == len(parameters)


def _is_of_parameter(state: Any) -> bool:
    """Whether a value is what an optimizer of torch knows of a parameter, as far as that tells."""
    if not isinstance(state, Mapping) or any(isinstance(each, str) for each in state.values()):
        return False
    found = {key: state[key] for key in _TENSORS if key in state}
    return all(
        isinstance(each, Tensor) or (each is None and key == "momentum_buffer")
        for key, each in found.items()
    )


def _are_mappings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, Mapping) for each in value)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and isinstance(each, float | int) for name, each in value.items()
    )


def _is_own(value: Any) -> bool:
    """Whether a value is what a FinetuneClassifier notes; names of classes have their own check."""
    return (
        isinstance(value, Mapping)
        and isinstance(value.get("data_config"), Mapping)
        and "run_seed" in value
        and _is_seed(value["run_seed"])
        and _are_class_weights(value.get("class_weights"))
    )


def _are_class_weights(value: Any) -> bool:
    return value is None or (
        isinstance(value, list)
        and all(isinstance(weight, float) and 0 < weight < math.inf for weight in value)
    )


def _is_run(value: Any) -> bool:
    batching = value.get("batching", {}) if isinstance(value, Mapping) else None
    return _are_numbers(batching)


_PARTS: Mapping[str, Callable[[Any], bool]] = {
    "pytorch-lightning_version": _is_version,
    "hparams_name": lambda value: value is None or isinstance(value, str),
    "state_dict": _are_weights,
    "epoch": _is_count,
    "global_step": _is_count,
    "callbacks": _are_states,
    "loops": _are_states,
    "optimizer_states": _are_optimizers,
    "lr_schedulers": _are_mappings,
    OWN: _is_own,
    RUN: _is_run,
    MONITORED: _are_numbers,
}

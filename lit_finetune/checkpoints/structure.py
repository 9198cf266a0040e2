"""Check the form of a checkpoint, part by part."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from packaging.version import InvalidVersion, Version
from torch import Tensor

_OWN_KEY, _RUN_KEY, _MONITORED_KEY = "lit_finetune", "lit_finetune_run", "lit_finetune_monitored"
_MAX_COUNT = 2**63
_STATE_TENSORS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "sum")
"""The names of tensors in the state of torch's optimizers."""
_NUMBER, _SEQUENCE = float | int, list | tuple
_TYPES: tuple[Any, ...] = (Mapping, _SEQUENCE, str, Tensor, _NUMBER)


def damaged_part(content: Mapping[Any, Any]) -> str:
    """The first part of a checkpoint that has an invalid form; "" if all are valid.

    The states of callbacks and optimizers are not checked in detail.

    >>> damaged_part({"state_dict": {}, "callbacks": ["best"]})
    'callbacks'

    Args:
        content: Plain data; parts may be missing.
    """
    unnamed = (str(key)[:40] for key in content if not isinstance(key, str))
    invalid = (
        key for key, is_valid in _PARTS.items() if key in content and not is_valid(content[key])
    )
    return next(unnamed, "") or next(invalid, "")


def mismatched_part(expected: Any, actual: Any, path: str = "", *, allow_none: bool = True) -> str:
    """The part of a checkpoint's state whose form differs from this run's; "" if there is none.

    Parts that only one of them has, and parts that are None in this run, are not compared.

    Args:
        expected: The state in this run.
        actual: The state in a checkpoint.
        path: The path of the part that is compared.
        allow_none: Whether the checkpoint may have None for any part.

    >>> mismatched_part({"wait": 0, "best": {"score": 0.1}}, {"wait": 2, "best": {"score": "high"}})
    'best.score'
    """
    if expected is None or (actual is None and (allow_none or isinstance(expected, bool))):
        return ""
    kind: Any = next((kind for kind in _TYPES if isinstance(expected, kind)), None)
    if kind is None:
        return ""
    is_scalar = kind is _NUMBER and isinstance(actual, Tensor) and actual.numel() == 1
    if not is_scalar and not isinstance(actual, kind):
        return path or "state"
    pairs: list[tuple[Any, Any, Any]] = []
    if kind is Mapping:
        pairs = [(key, expected[key], actual[key]) for key in expected if key in actual]
    elif kind is _SEQUENCE:
        pairs = [(number, *pair) for number, pair in enumerate(zip(expected, actual, strict=False))]
    paths = (
        mismatched_part(a, b, f"{path}.{key}".strip("."), allow_none=allow_none)
        for key, a, b in pairs
    )
    return next(filter(None, paths), "")


def read_run_seed(state: Any) -> int | None:
    """The seed of a run's sample order, in a data module's state.

    Raises:
        ValueError: The state has no valid seed.
    """
    if not isinstance(state, Mapping) or not _is_seed(state.get("run_seed", "")):
        raise ValueError(
            "The checkpoint's state of the order of pictures is damaged: it has no `run_seed`."
            " Start a new run from its weights alone, passed as `weights`."
        )
    seed: int | None = state["run_seed"]
    return seed


def _is_version(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(Version(value))
    except InvalidVersion:
        return False


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MAX_COUNT


def _is_seed(value: Any) -> bool:
    return value is None or (type(value) is int and abs(value) < 2 * _MAX_COUNT)


def _are_weights(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and (isinstance(each, Tensor) or name.endswith("_extra_state"))
        for name, each in value.items()
    )


def _are_states(value: Any) -> bool:
    """Whether a value is a mapping from names to states."""
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
        and all(map(_is_parameter_state, value["state"].values()))
    )


def _are_numbers_or_names(parameters: list[Any]) -> bool:
    """Whether parameters are unique numbers, or, from a sharded run, unique names."""
    kinds = {type(each) for each in parameters}
    return kinds in (set(), {int}, {str}) and len(set(parameters)) == len(parameters)


def _is_parameter_state(state: Any) -> bool:
    """Whether a value has the form of a torch optimizer's state of a parameter."""
    if not isinstance(state, Mapping) or any(isinstance(each, str) for each in state.values()):
        return False
    actual = {key: state[key] for key in _STATE_TENSORS if key in state}
    return all(
        isinstance(each, Tensor) or (each is None and key == "momentum_buffer")
        for key, each in actual.items()
    )


def _are_mappings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, Mapping) for each in value)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and isinstance(each, float | int) for name, each in value.items()
    )


def _is_own_data(value: Any) -> bool:
    """Whether a value has the form of a FinetuneClassifier's data, without the class names."""
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


def _is_run_state(value: Any) -> bool:
    if not isinstance(value, Mapping) or not _are_numbers(value.get("batching", {})):
        return False
    by_rank = value.get("epoch_metrics", [])
    return _are_mappings(by_rank) and all(
        isinstance(metric, Mapping) and _is_epoch_metric(metric)
        for sums in by_rank
        for metric in sums.values()
    )


def _is_epoch_metric(value: Mapping[str, Any]) -> bool:
    if not isinstance(value.get("name"), str):
        return False
    if "states" not in value:
        return _are_numbers({key: value.get(key) or 0 for key in ("value", "count")})
    states = value["states"]
    is_state = isinstance(states, Mapping) and all(isinstance(t, Tensor) for t in states.values())
    has_names = isinstance(value.get("attribute"), str)
    return is_state and has_names and _is_count(value.get("updates"))


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
    _OWN_KEY: _is_own_data,
    _RUN_KEY: _is_run_state,
    _MONITORED_KEY: _are_numbers,
}

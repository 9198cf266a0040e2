"""Check a classifier's arguments, and convert them to plain data for a checkpoint."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from math import isfinite
from numbers import Integral
from pathlib import Path
from typing import Any

from torch import nn

from lit_finetune.lora import Lora


def plain_hparams(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments as plain data for a checkpoint, without modules and callables.

    A backbone or head that was passed as an object, or a backbone built from objects, becomes None,
    and has to be passed again when the checkpoint is loaded. Optimizer and scheduler are left out,
    since loading does not need them.
    """
    values = {
        key: asdict(value) if isinstance(value, Lora) else value
        for key, value in arguments.items()
        if key not in ("optimizer", "lr_scheduler")
    }
    if _has_objects(values.get("backbone_kwargs")):
        values["backbone"] = None
    return {
        key: None if _has_objects(value) else str(value) if isinstance(value, Path) else value
        for key, value in values.items()
    }


def check_hparams(arguments: Mapping[str, Any]) -> None:
    """Refuse invalid arguments of a classifier.

    Raises:
        ValueError: Names every problem at once.
    """
    problems = [
        f"`{key}` {rule}, but got {arguments[key]!r}"
        for key, rule, is_valid in _RULES
        if key in arguments and not _is_valid(is_valid, arguments[key])
    ]
    weights, classes = arguments.get("class_weights"), arguments.get("num_classes")
    if isinstance(weights, Sequence) and not isinstance(weights, str) and len(weights) != classes:
        problems.append(f"`class_weights` has {len(weights)} entries for num_classes={classes}")
    if problems:
        raise ValueError("These arguments cannot be:\n  " + "\n  ".join(problems))


def _is_valid(rule: Callable[[Any], bool], value: Any) -> bool:
    """Whether a value satisfies a rule; a value of another type does not."""
    try:
        return bool(rule(value))
    except (TypeError, ValueError, ArithmeticError):
        return False


def _number(value: Any) -> float:
    """A number, or an error where a value is none, or is nan or infinite."""
    if isinstance(value, bool | str) or not isfinite(value):
        raise ValueError
    return float(value)


def _is_count(value: Any) -> bool:
    """Whether a value is a whole number from 1 on."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


def _has_objects(value: Any) -> bool:
    """Whether a value is or contains a module or a callable."""
    if isinstance(value, Mapping):
        return any(map(_has_objects, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_has_objects, value))
    return isinstance(value, nn.Module) or callable(value)


_RULES = (
    (
        "optimizer",
        "takes parameter groups and returns a `torch.optim.Optimizer`: pass a class such as"
        " `torch.optim.Adam`, or a `functools.partial` of one",
        lambda value: value is None or callable(value),
    ),
    (
        "lr_scheduler",
        "is 'constant', or takes the optimizer and returns a scheduler of"
        " `torch.optim.lr_scheduler`: pass a class, or a `functools.partial` of one",
        lambda value: value in (None, "constant") or callable(value),
    ),
    (
        "backbone",
        "must be given again: the checkpoint's network was passed as a module, or from objects",
        lambda value: value is not None,
    ),
    (
        "head",
        "must be given again: the checkpoint's head was passed as a module or a callable",
        lambda value: value is not None,
    ),
    (
        "num_classes",
        "is a number of classes from 2 on",
        lambda n: isinstance(n, Integral) and not isinstance(n, bool) and int(n) >= 2,
    ),
    (
        "weights",
        "is the name of weights, such as 'DEFAULT', or the path of a file",
        lambda value: value is None or isinstance(value, str | Path),
    ),
    (
        "head_name",
        "is the name of a module of the network, such as 'fc'",
        lambda value: value is None or isinstance(value, str),
    ),
    (
        "lr_scheduler_interval",
        "is 'epoch' or 'step'",
        lambda value: value in ("epoch", "step"),
    ),
    ("channels_last", "is true or false", lambda value: isinstance(value, bool)),
    ("compile", "is true or false", lambda value: isinstance(value, bool)),
    ("gradient_checkpointing", "is true or false", lambda value: isinstance(value, bool)),
    ("in_chans", "is a number of channels from 1 on", lambda n: n is None or _is_count(n)),
    ("image_size", "is a number of pixels from 1 on", lambda n: n is None or _is_count(n)),
    ("drop_rate", "is a probability below 1", lambda p: 0 <= _number(p) < 1),
    (
        "label_smoothing",
        "is a share of the probability, from 0 to 1",
        lambda p: 0 <= _number(p) <= 1,
    ),
    ("lr", "must be positive and finite", lambda lr: _number(lr) > 0),
    (
        "backbone_lr_ratio",
        "must be positive and finite; to freeze, use a schedule",
        lambda ratio: _number(ratio) > 0,
    ),
    ("layer_decay", "is a factor above 0, up to 1", lambda d: d is None or 0 < _number(d) <= 1),
    (
        "weight_decay",
        "is a finite number from 0 on",
        lambda decay: decay is None or _number(decay) >= 0,
    ),
    ("mixup_alpha", "is a finite number from 0 on", lambda alpha: _number(alpha) >= 0),
    ("cutmix_alpha", "is a finite number from 0 on", lambda alpha: _number(alpha) >= 0),
    ("min_match", "is a share from 0 to 1", lambda share: 0 <= _number(share) <= 1),
    (
        "class_weights",
        "is a list of positive numbers, or 'balanced'",
        lambda weights: (
            weights in (None, "balanced")
            or (not isinstance(weights, str) and all(_number(each) > 0 for each in weights))
        ),
    ),
)

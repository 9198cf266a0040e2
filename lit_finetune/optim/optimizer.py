"""Build an optimizer over named groups, and the configuration of its scheduler."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from lit_finetune.optim.lr_schedulers import add_group, refuse_unknown_lists
from lit_finetune.optim.options import refuse_nonfinite_options
from lit_finetune.optim.param_groups import ParamGroup

DEFAULT_LR = 1e-3

OptimizerFactory = Callable[[Any], Optimizer]


def warmup_cosine(step: int, *, warmup: int, total: int) -> float:
    """The factor on the learning rate: linear warm-up, then half a cosine down to 0.

    >>> [round(warmup_cosine(step, warmup=2, total=6), 2) for step in range(7)]
    [0.5, 1.0, 1.0, 0.85, 0.5, 0.15, 0.0]
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return (1 + math.cos(math.pi * min(1.0, progress))) / 2


def cosine_with_warmup(
    optimizer: Optimizer, *, total: float, warmup_share: float = 0.05
) -> LRScheduler:
    """Linear warm-up over a fraction of all steps, then half a cosine down to 0, step by step.

    Raises:
        ValueError: The length of the run is unknown.
    """
    if not math.isfinite(total):
        raise ValueError(
            "The default scheduler, a cosine, needs the length of the run: set the Trainer's"
            " max_epochs or max_steps, or lr_scheduler='constant'."
        )
    warmup = round(total * warmup_share)
    return LambdaLR(optimizer, partial(warmup_cosine, warmup=warmup, total=int(total)))


def lr_scheduler_config(
    scheduler: LRScheduler,
    interval: str,
    *,
    validates: bool = True,
    every_n_epochs: int | None = 1,
) -> dict[str, Any]:
    """Lightning's configuration of a scheduler; ReduceLROnPlateau monitors `val/loss` by default.

    A plateau scheduler steps only in epochs with validation: in others its metric would be missing
    or old, which would count as an epoch without improvement.

    Args:
        scheduler: The scheduler of the run's optimizer.
        interval: When it steps: `epoch` or `step`.
        validates: Whether the run validates.
        every_n_epochs: Validation runs every so many epochs; None if it does not go by epochs.

    Raises:
        ValueError: A plateau scheduler monitors validation, but the run has none, or the scheduler
            steps after each batch.
    """
    config = {"scheduler": scheduler, "interval": interval}
    if isinstance(scheduler, ReduceLROnPlateau):
        monitor = getattr(scheduler, "monitor", "val/loss")
        config.update(monitor=monitor, strict=False)  # no value yet: Lightning only warns
        if monitor.startswith("val"):
            _check_plateau(monitor, interval, validates=validates)
            config["frequency"] = every_n_epochs or 1
    return config


def _check_plateau(monitor: str, interval: str, *, validates: bool) -> None:
    if not validates:
        raise ValueError(
            f"ReduceLROnPlateau watches {monitor!r}, but there is no validation: give validation"
            " data, leave `limit_val_batches` above 0, or use another `lr_scheduler`."
        )
    if interval == "step":
        raise ValueError(
            f"ReduceLROnPlateau with lr_scheduler_interval='step' would take {monitor!r} for a new"
            " value at each step, but only validation brings one. Use 'epoch'."
        )


def refuse_rare_validation(
    schedulers: Iterable[Any], *, val_batches: float | None, epoch_batches: float
) -> None:
    """Refuse plateau schedulers that step in epochs without validation.

    Args:
        schedulers: Lightning's configurations of the schedulers.
        val_batches: The number of batches between validations; None if validation goes by time.
        epoch_batches: The number of batches in an epoch.

    Raises:
        ValueError: Names the options that conflict.
    """
    for config in schedulers:
        watches_validation = config.reduce_on_plateau and str(config.monitor).startswith("val")
        if watches_validation and (val_batches is None or val_batches > epoch_batches):
            frequency = "by time" if val_batches is None else f"every {val_batches} batches"
            raise ValueError(
                f"ReduceLROnPlateau steps at the end of each epoch of {epoch_batches} batches, but"
                f" {config.monitor!r} comes {frequency} (`check_val_every_n_epoch=None`): it would"
                " see old values. Set `check_val_every_n_epoch`, or a smaller `val_check_interval`."
            )


def can_fuse(trainer: Any, parameters: Iterable[nn.Parameter]) -> bool:
    """Whether an optimizer may use its fused implementation, which is much faster.

    Not with a gradient scaler: a fused step unscales by itself, so Lightning refuses to clip.

    Args:
        trainer: The Trainer; None outside of training.
        parameters: The parameters that may train.
    """
    is_scaled = trainer is not None and getattr(trainer.precision_plugin, "scaler", None)
    return not is_scaled and all(p.device.type in ("cpu", "cuda") for p in parameters)


def leading_groups(groups: Sequence[ParamGroup]) -> list[ParamGroup]:
    """The groups of the first block in the list, the head; other rates are multiples of theirs."""
    block = groups[0].name.split("/")[0]
    return [group for group in groups if group.name.split("/")[0] == block]


def build_optimizer(
    groups: Sequence[ParamGroup],
    parameters: Mapping[str, nn.Parameter],
    *,
    factory: OptimizerFactory,
    lr: float,
    weight_decay: float | None,
) -> Optimizer:
    """The optimizer of the leading groups; `add_following_groups` adds the others later.

    Args:
        groups: Named groups, the leading ones first.
        parameters: The model's parameters by name.
        factory: Takes parameter groups, returns the optimizer.
        lr: The leading groups' rate.
        weight_decay: Of the groups that decay; None for the optimizer's default.

    Raises:
        ValueError: The factory sets one rate, and `lr` another; or an option is nan or infinite.
    """
    leading = leading_groups(groups)
    optimizer = factory([_group_options(group, parameters, weight_decay) for group in leading])
    rate, default_lr = _leader_lr(optimizer, lr), optimizer.defaults.get("lr")
    for group in optimizer.param_groups:
        if group["lr"] == default_lr:  # else the factory set the rate of this group
            group["lr"] = rate
    optimizer.defaults["lr"] = rate
    refuse_nonfinite_options([optimizer])
    return optimizer


def add_following_groups(
    optimizer: Optimizer,
    schedulers: Sequence[LRScheduler],
    groups: Sequence[ParamGroup],
    parameters: Mapping[str, nn.Parameter],
) -> None:
    """Add the groups behind the leading ones to the optimizer and its schedulers.

    They are added after the scheduler is made, since some schedulers (OneCycleLR, CyclicLR) set all
    groups to one rate. Options that they lack, such as weight decay, are the leader's.

    Raises:
        ValueError: A user's scheduler has per-group lists that would not be extended.
    """
    for scheduler in schedulers:
        refuse_unknown_lists(scheduler, len(optimizer.param_groups))
    for group in groups[len(leading_groups(groups)) :]:
        options = _group_options(group, parameters, weight_decay=None)
        add_group(optimizer, schedulers, options, scale=group.lr_ratio)


def _group_options(
    group: ParamGroup, parameters: Mapping[str, nn.Parameter], weight_decay: float | None
) -> dict[str, Any]:
    options: dict[str, Any] = {
        "params": [parameters[name] for name in group.parameters],
        "name": group.name,
        "lr_ratio": group.lr_ratio,
    }
    if not group.decays:
        options["weight_decay"] = 0.0
    elif weight_decay is not None:
        options["weight_decay"] = weight_decay
    return options


def _leader_lr(optimizer: Optimizer, lr: float) -> float:
    """`lr`, or the optimizer's own rate if that was given and `lr` is the default."""
    default_lr = optimizer.defaults.get("lr", lr)
    parameter = inspect.signature(type(optimizer)).parameters.get("lr")
    if default_lr == lr or (parameter is not None and default_lr == parameter.default):
        return lr
    if lr != DEFAULT_LR:
        raise ValueError(
            f"Two learning rates: `lr` is {lr}, and the optimizer {type(optimizer).__name__} has"
            f" lr={default_lr}. Give one of them, best `lr`."
        )
    return float(default_lr)

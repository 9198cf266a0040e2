"""Build an optimizer and its scheduler over named groups, at real rates."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from lit_finetune.optim.lr_schedulers import add_group, refuse_unknown
from lit_finetune.optim.param_groups import ParamGroup

DEFAULT_LR = 1e-3

OptimizerFactory = Callable[[Any], Optimizer]


def warmup_cosine(step: int, *, warmup: int, total: int) -> float:
    """The factor on the learning rate: up in a line, down in half a cosine.

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
    """Linear warm-up over a share of all steps, then half a cosine down to 0, step by step.

    Raises:
        ValueError: The run has no known length.
    """
    if not math.isfinite(total):
        raise ValueError(
            "The default scheduler, a cosine, needs the length of the run: set the Trainer's"
            " max_epochs or max_steps, or lr_scheduler='constant'."
        )
    warmup = round(total * warmup_share)
    return LambdaLR(optimizer, partial(warmup_cosine, warmup=warmup, total=int(total)))


def describe_scheduler(
    scheduler: LRScheduler,
    interval: str,
    *,
    validates: bool = True,
    every_n_epochs: int | None = 1,
) -> dict[str, Any]:
    """What Lightning needs to know of a scheduler; a plateau's metric is `val/loss` unless it says.

    A plateau steps in epochs that validate alone: in others its metric would be missing, or be
    the old one, which would count as an epoch without improvement.

    Args:
        scheduler: Over the optimizer of the run.
        interval: When it steps: `epoch` or `step`.
        validates: Whether the run validates.
        every_n_epochs: In which epochs; None where validation does not go by epochs.

    Raises:
        ValueError: A plateau watches validation, and there is none, or it is to step each batch.
    """
    config = {"scheduler": scheduler, "interval": interval}
    if isinstance(scheduler, ReduceLROnPlateau):
        monitor = getattr(scheduler, "monitor", "val/loss")
        config.update(monitor=monitor, strict=False)  # no value yet: Lightning says so and goes on
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
    """Refuse plateaus that step at the end of epochs in some of which nothing is validated.

    Args:
        schedulers: Lightning's configurations of them.
        val_batches: After how many batches validation comes where it does not go by epochs; None
            where it goes by time.
        epoch_batches: How many batches an epoch has.

    Raises:
        ValueError: Names the options that bring both together.
    """
    for config in schedulers:
        watches = config.reduce_on_plateau and str(config.monitor).startswith("val")
        if watches and (val_batches is None or val_batches > epoch_batches):
            when = "by time" if val_batches is None else f"every {val_batches} batches"
            raise ValueError(
                f"ReduceLROnPlateau steps at the end of each epoch of {epoch_batches} batches, but"
                f" {config.monitor!r} comes {when} (`check_val_every_n_epoch=None`): it would see"
                " old values. Set `check_val_every_n_epoch`, or a smaller `val_check_interval`."
            )


def can_fuse(trainer: Any, parameters: Iterable[nn.Parameter]) -> bool:
    """Whether an optimizer may step in one kernel for all parameters, which is much faster.

    Not where a gradient scaler has to clip: a fused step unscales by itself, and Lightning refuses.

    Args:
        trainer: Who trains; None outside of training.
        parameters: What may be trained.
    """
    is_scaled = trainer is not None and getattr(trainer.precision_plugin, "scaler", None)
    return not is_scaled and all(p.device.type in ("cpu", "cuda") for p in parameters)


def leading_groups(groups: Sequence[ParamGroup]) -> list[ParamGroup]:
    """The groups of the first block in the list, the head: the others follow their rate."""
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
    """The optimizer of the leading groups; `join_groups` adds the others once a scheduler exists.

    Args:
        groups: Named groups, the leading ones first.
        parameters: The model's parameters by name.
        factory: Takes parameter groups, returns the optimizer.
        lr: The leading groups' rate.
        weight_decay: For the groups that decay; None for the optimizer's own.

    Raises:
        ValueError: The factory sets a rate of its own, and `lr` another one.
    """
    leading = leading_groups(groups)
    optimizer = factory([_options(group, parameters, weight_decay) for group in leading])
    rate, own = _leading_rate(optimizer, lr), optimizer.defaults.get("lr")
    for group in optimizer.param_groups:
        if group["lr"] == own:  # else the factory gave it a rate of its own
            group["lr"] = rate
    optimizer.defaults["lr"] = rate
    return optimizer


def join_groups(
    optimizer: Optimizer,
    schedulers: Sequence[LRScheduler],
    groups: Sequence[ParamGroup],
    parameters: Mapping[str, nn.Parameter],
) -> None:
    """Let the groups behind the leading ones join the optimizer and its schedulers.

    They join once the scheduler is made, since some (OneCycleLR, CyclicLR) would level all rates.
    What they do not say themselves, such as weight decay, they take from the leader.

    Raises:
        ValueError: A scheduler of the user's own could not follow.
    """
    for scheduler in schedulers:
        refuse_unknown(scheduler, len(optimizer.param_groups))
    for group in groups[len(leading_groups(groups)) :]:
        options = _options(group, parameters, weight_decay=None)
        add_group(optimizer, schedulers, options, scale=group.lr_ratio)


def _options(
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


def _leading_rate(optimizer: Optimizer, lr: float) -> float:
    """`lr`, or the optimizer's own where that was given and `lr` was left alone."""
    own = optimizer.defaults.get("lr", lr)
    parameter = inspect.signature(type(optimizer)).parameters.get("lr")
    if own == lr or (parameter is not None and own == parameter.default):
        return lr
    if lr != DEFAULT_LR:
        raise ValueError(
            f"Two learning rates: `lr` is {lr}, and the optimizer {type(optimizer).__name__} has"
            f" lr={own}. Give one of them, best `lr`."
        )
    return float(own)

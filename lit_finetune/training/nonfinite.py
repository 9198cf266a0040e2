"""Detect losses that are not finite before the optimizer's step, without idling the device.

The flag is copied from the device while it runs the backward pass, which was queued before; the
program waits only for the forward pass. So the device is always busy, and no step is made with a
gradient that destroys the weights.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn

_STATISTICS = ("running_mean", "running_var")
_STREAMS: dict[torch.device, Any] = {}


class StepPosition(NamedTuple):
    """The position of a training: epoch, batch, and number of steps before."""

    epoch: int
    batch: int
    step: int

    def __str__(self) -> str:
        return f"at batch {self.batch} of epoch {self.epoch} (step {self.step})"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NonfiniteLoss:
    """A loss that is not finite, in this process or another one."""

    position: StepPosition
    loss: Tensor
    images: Tensor
    logits: Tensor


class LossWatch:
    """Detects the losses of a training that are not finite."""

    def __init__(self) -> None:
        self._pending: list[tuple[NonfiniteLoss, Callable[[], bool]]] = []
        self._reported_epoch: int | None = None
        self._statistics: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def save_statistics(self, module: nn.Module) -> None:
        """Save the statistics of norm layers before a batch, whose forward changes them."""
        buffers = [b for name, b in module.named_buffers() if _leaf(name) in _STATISTICS]
        self._statistics = [(buffer, buffer.clone()) for buffer in buffers]

    @torch.no_grad()
    def restore_statistics(self) -> None:
        """Restore the saved statistics."""
        for buffer, value in self._statistics:
            buffer.copy_(value)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # by torch
    @torch.no_grad()
    def add(self, loss: Tensor, images: Any, logits: Tensor, *, position: StepPosition) -> None:
        """Start to check whether a loss is finite in all processes."""
        detached = loss.detach()
        pictures = images if isinstance(images, Tensor) else images[0]
        nonfinite = NonfiniteLoss(
            position=position, loss=detached, images=pictures, logits=logits.detach()
        )
        self._pending.append((nonfinite, _read_async((~detached.isfinite()).int())))

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # by torch
    def pop_nonfinite(self) -> list[NonfiniteLoss]:
        """The nonfinite losses since the last call, the same in all processes."""
        pending, self._pending = self._pending, []
        return [nonfinite for nonfinite, is_nonfinite in pending if is_nonfinite()]

    def is_reported(self, epoch: int) -> bool:
        """Whether a loss was reported in this epoch; from now on it counts as reported."""
        was_reported, self._reported_epoch = self._reported_epoch == epoch, epoch
        return was_reported


def _read_async(flag: Tensor) -> Callable[[], bool]:
    """Start to copy a flag of all processes to the CPU; return a function that waits for it.

    On a GPU the copy runs in parallel to its computations, in a separate stream.
    """
    is_shared = distributed.is_available() and distributed.is_initialized()
    if flag.device.type == "cuda":
        return _copy_async(flag, is_shared)
    largest = distributed.ReduceOp.MAX
    work = distributed.all_reduce(flag, largest, async_op=True) if is_shared else None

    def read() -> bool:
        if work is not None:
            work.wait()
        return bool(flag.numpy() if flag.device.type == "cpu" else flag)

    return read


def _copy_async(flag: Tensor, is_shared: bool) -> Callable[[], bool]:
    stream = _STREAMS.setdefault(flag.device, torch.cuda.Stream(flag.device))  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(flag.device))
    host = torch.empty(flag.shape, dtype=flag.dtype, pin_memory=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        if is_shared:
            distributed.all_reduce(flag, distributed.ReduceOp.MAX)
        host.copy_(flag, non_blocking=True)
        copied.record(stream)
    flag.record_stream(stream)

    def read() -> bool:
        copied.synchronize()
        return bool(host.numpy())

    return read


def discard_gradients(module: nn.Module, *, has_scaler: bool) -> None:
    """Make the optimizer's next step a no-op.

    Args:
        module: A module whose parameters have gradients.
        has_scaler: Whether a GradScaler checks them: it skips a step with nonfinite gradients, and
            needs at least one gradient.
    """
    for parameter in module.parameters():
        if parameter.grad is None:
            continue
        if has_scaler:
            parameter.grad.fill_(torch.nan)
        else:
            parameter.grad = None


def describe_loss(nonfinite: NonfiniteLoss, module: nn.Module, *, precision: str, lr: float) -> str:
    """The position and likely cause of a nonfinite loss, in words.

    Args:
        nonfinite: The loss.
        module: The module that computed the loss.
        precision: The run's precision.
        lr: The largest learning rate of its optimizers.
    """
    if nonfinite.loss.isfinite():
        return f"The loss of another process is not finite {nonfinite.position}."
    cause = nonfinite_cause(
        has_finite_images=bool(nonfinite.images.isfinite().all()),
        has_finite_weights=not nonfinite_names(module),
        has_finite_logits=bool(nonfinite.logits.isfinite().all()),
        precision=precision,
        lr=lr,
    )
    return f"The loss is {nonfinite.loss.item()} {nonfinite.position}. {cause}"


def nonfinite_cause(
    *,
    has_finite_images: bool,
    has_finite_weights: bool,
    has_finite_logits: bool,
    precision: str,
    lr: float,
) -> str:
    """The likely cause of a nonfinite loss, from what else is not finite.

    >>> nonfinite_cause(
    ...     has_finite_images=False,
    ...     has_finite_weights=True,
    ...     has_finite_logits=False,
    ...     precision="32-true",
    ...     lr=0.1,
    ... )
    'The pictures hold nan or infinity: look at the transforms, and at `mean` and `std`.'
    """
    if not has_finite_images:
        return "The pictures hold nan or infinity: look at the transforms, and at `mean` and `std`."
    advice = (
        f"lower the learning rate (the largest is {lr:g}), warm it up, or clip gradients"
        " (`Trainer(gradient_clip_val=1.0)`)"
    )
    if not has_finite_weights:
        return f"The weights or statistics hold nan or infinity since a step before: {advice}."
    if has_finite_logits:
        return (
            "The logits are finite, so it comes of the loss itself: look for a logarithm of 0 or a"
            " division by 0 in `loss`, and at the class weights."
        )
    if precision.startswith("16"):
        return f"Numbers end at 65504 in precision {precision}: use 'bf16-mixed', or {advice}."
    return f"The logits are not finite, though pictures and weights are: {advice}."


def nonfinite_names(module: nn.Module) -> list[str]:
    """The trainable parameters and statistics of norm layers with nan or infinity."""
    tensors = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    tensors |= {k: b for k, b in module.named_buffers() if _leaf(k) in _STATISTICS}
    local = {name: getattr(tensor, "_local_tensor", tensor) for name, tensor in tensors.items()}
    flags = [tensor.isfinite().all() for tensor in local.values()]
    if not flags or bool(torch.stack(flags).all()):  # one read from the device
        return []
    return [name for name, is_finite in zip(local, flags, strict=True) if not is_finite]


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def describe_weights(names: list[str], position: str) -> str:
    """The message about nonfinite weights that would be saved in a checkpoint."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (
        f"After {position} weights or statistics hold nan or infinity"
        f" ({', '.join(names[:3])}{more}): no checkpoint is written, and those before stay as they"
        " are. A step had a gradient that was not finite, or far too large: lower the learning rate"
        " or clip gradients (`Trainer(gradient_clip_val=1.0)`)."
    )


def refuse_nonfinite_weights(module: Any) -> None:
    """Raise in all processes, instead of saving nonfinite weights in training.

    Raises:
        ValueError: Names some of the weights.
    """
    trainer = module._trainer
    if trainer is None or trainer.state.fn != "fit":
        return
    names = nonfinite_names(module)
    if trainer.strategy.reduce_boolean_decision(bool(names), all=False):
        position = f"step {module.global_step}, in epoch {module.current_epoch},"
        raise ValueError(describe_weights(names or ["in another process"], position))

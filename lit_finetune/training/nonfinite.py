"""Losses that are not finite: noticed before the optimizer's step, without the device waiting.

Whether a loss is finite is copied from the device while it works on the backward pass, which the
program has given it by then; the program itself waits for no more than the forward pass. So the
device has always something to do, and no step is made with a gradient that ruins the weights.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn

_STATISTICS = ("running_mean", "running_var")
_STREAMS: dict[torch.device, Any] = {}


class StepPlace(NamedTuple):
    """Where a training is: an epoch, a batch of it, and how many steps were made before."""

    epoch: int
    batch: int
    step: int

    def __str__(self) -> str:
        return f"at batch {self.batch} of epoch {self.epoch} (step {self.step})"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NonfiniteLoss:
    """A loss that is not finite, in this process or in another one."""

    place: StepPlace
    loss: Tensor
    images: Tensor
    logits: Tensor


class LossWatch:
    """Notices which losses of a training are not finite."""

    def __init__(self) -> None:
        self._pending: list[tuple[NonfiniteLoss, Callable[[], bool]]] = []
        self._told_epoch: int | None = None
        self._statistics: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def keep_statistics(self, module: nn.Module) -> None:
        """Note the statistics of norm layers before a batch, which changes them at once."""
        buffers = [b for name, b in module.named_buffers() if _leaf(name) in _STATISTICS]
        self._statistics = [(buffer, buffer.clone()) for buffer in buffers]

    @torch.no_grad()
    def restore_statistics(self) -> None:
        """Put back what was noted."""
        for buffer, value in self._statistics:
            buffer.copy_(value)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # by torch
    @torch.no_grad()
    def add(self, loss: Tensor, images: Any, logits: Tensor, *, place: StepPlace) -> None:
        """Begin to find out whether a loss is finite in all processes."""
        seen = loss.detach()
        pictures = images if isinstance(images, Tensor) else images[0]
        found = NonfiniteLoss(place=place, loss=seen, images=pictures, logits=logits.detach())
        self._pending.append((found, _begin_to_read((~seen.isfinite()).int())))

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # by torch
    def take(self) -> list[NonfiniteLoss]:
        """The losses since the last call that are not finite, the same in all processes."""
        pending, self._pending = self._pending, []
        return [found for found, is_bad in pending if is_bad()]

    def is_told(self, epoch: int) -> bool:
        """Whether something was said in this epoch; it counts as said from now on."""
        was_told, self._told_epoch = self._told_epoch == epoch, epoch
        return was_told


def _begin_to_read(flag: Tensor) -> Callable[[], bool]:
    """Start to bring a flag of all processes to the CPU; what is returned waits until it is there.

    On a GPU that happens beside what the GPU computes, in a stream of its own.
    """
    is_shared = distributed.is_available() and distributed.is_initialized()
    if flag.device.type == "cuda":
        return _begin_to_copy(flag, is_shared)
    largest = distributed.ReduceOp.MAX
    work = distributed.all_reduce(flag, largest, async_op=True) if is_shared else None

    def read() -> bool:
        if work is not None:
            work.wait()
        return bool(flag.numpy() if flag.device.type == "cpu" else flag)

    return read


def _begin_to_copy(flag: Tensor, is_shared: bool) -> Callable[[], bool]:
    stream = _STREAMS.setdefault(flag.device, torch.cuda.Stream(flag.device))  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(flag.device))
    host = torch.empty(flag.shape, dtype=flag.dtype, pin_memory=True)
    arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        if is_shared:
            distributed.all_reduce(flag, distributed.ReduceOp.MAX)
        host.copy_(flag, non_blocking=True)
        arrived.record(stream)
    flag.record_stream(stream)

    def read() -> bool:
        arrived.synchronize()
        return bool(host.numpy())

    return read


def discard_gradients(module: nn.Module, *, has_scaler: bool) -> None:
    """Let the next step of the optimizer change nothing.

    Args:
        module: Its parameters have gradients.
        has_scaler: Whether a GradScaler looks at them, which makes no step with such as are not
            finite, and needs some to look at.
    """
    for parameter in module.parameters():
        if parameter.grad is None:
            continue
        if has_scaler:
            parameter.grad.fill_(torch.nan)
        else:
            parameter.grad = None


def describe_loss(found: NonfiniteLoss, module: nn.Module, *, precision: str, lr: float) -> str:
    """Where a loss was not finite, and what is the likely cause.

    Args:
        found: The loss.
        module: It has the weights that gave the loss.
        precision: Of the run.
        lr: The largest rate of its optimizers.
    """
    if found.loss.isfinite():
        return f"The loss of another process is not finite {found.place}."
    cause = likely_cause(
        has_finite_images=bool(found.images.isfinite().all()),
        has_finite_weights=not nonfinite_names(module),
        has_finite_logits=bool(found.logits.isfinite().all()),
        precision=precision,
        lr=lr,
    )
    return f"The loss is {found.loss.item()} {found.place}. {cause}"


def likely_cause(
    *,
    has_finite_images: bool,
    has_finite_weights: bool,
    has_finite_logits: bool,
    precision: str,
    lr: float,
) -> str:
    """What makes a loss not finite, told by what else is not.

    >>> likely_cause(
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
    slower = (
        f"lower the learning rate (the largest is {lr:g}), warm it up, or clip gradients"
        " (`Trainer(gradient_clip_val=1.0)`)"
    )
    if not has_finite_weights:
        return f"The weights or statistics hold nan or infinity since a step before: {slower}."
    if has_finite_logits:
        return (
            "The logits are finite, so it comes of the loss itself: look for a logarithm of 0 or a"
            " division by 0 in `loss`, and at the class weights."
        )
    if precision.startswith("16"):
        return f"Numbers end at 65504 in precision {precision}: use 'bf16-mixed', or {slower}."
    return f"The logits are not finite, though pictures and weights are: {slower}."


def nonfinite_names(module: nn.Module) -> list[str]:
    """The parameters that train, and the statistics of norm layers, that hold nan or infinity."""
    tensors = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    tensors |= {k: b for k, b in module.named_buffers() if _leaf(k) in _STATISTICS}
    local = {name: getattr(tensor, "_local_tensor", tensor) for name, tensor in tensors.items()}
    flags = [tensor.isfinite().all() for tensor in local.values()]
    if not flags or bool(torch.stack(flags).all()):  # one read from the device
        return []
    return [name for name, is_finite in zip(local, flags, strict=True) if not is_finite]


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def describe_weights(names: list[str], place: str) -> str:
    """What is wrong with weights that a checkpoint was to hold."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (
        f"After {place} weights or statistics hold nan or infinity"
        f" ({', '.join(names[:3])}{more}): no checkpoint is written, and those before stay as they"
        " are. A step had a gradient that was not finite, or far too large: lower the learning rate"
        " or clip gradients (`Trainer(gradient_clip_val=1.0)`)."
    )


def refuse_nonfinite_weights(module: Any) -> None:
    """Raise, in all processes of a training, rather than write weights that are not finite.

    Raises:
        ValueError: Names some of them.
    """
    trainer = module._trainer
    if trainer is None or trainer.state.fn != "fit":
        return
    names = nonfinite_names(module)
    if trainer.strategy.reduce_boolean_decision(bool(names), all=False):
        place = f"step {module.global_step}, in epoch {module.current_epoch},"
        raise ValueError(describe_weights(names or ["in another process"], place))

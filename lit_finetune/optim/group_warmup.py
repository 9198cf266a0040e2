"""Warm up the learning rate of added groups, independently of the schedulers.

Most schedulers compute the next rate from the current one, so a lowered rate would stay low. Here
the rate is lowered only during the optimizer's step.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle


@dataclass(frozen=True, slots=True)
class WarmupRamp:
    """The rate rises linearly over `steps` steps, from step `start` of the run on."""

    start: int
    steps: int

    def factor(self, step: int) -> float:
        """The factor on the rate at a step of the run.

        >>> [WarmupRamp(start=10, steps=4).factor(step) for step in range(10, 16)]
        [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
        """
        return min(1.0, (step - self.start + 1) / self.steps)


class Warmup:
    """Lowers the rates of some parameters during each step of their optimizers.

    Args:
        optimizers: All optimizers of the run.
        current_step: Returns the number of optimizer steps of the run so far.
    """

    def __init__(self, optimizers: Sequence[Optimizer], current_step: Callable[[], int]) -> None:
        self._optimizers = optimizers
        self._current_step = current_step
        self._ramps: dict[int, WarmupRamp] = {}
        self._full_rates: list[tuple[dict[str, Any], Any]] = []
        self._handles: list[RemovableHandle] = []

    def add(self, parameters: Iterable[nn.Parameter], ramp: WarmupRamp) -> None:
        """Warm up the rate of parameters; their groups hold no others."""
        self._ramps.update({id(parameter): ramp for parameter in parameters})
        if not self._handles:
            for optimizer in self._optimizers:
                self._handles.append(optimizer.register_step_pre_hook(self._lower_rates))
                self._handles.append(optimizer.register_step_post_hook(self._restore_after_step))

    def restore_rates(self) -> None:
        """Restore the groups' rates, also after a step that was interrupted."""
        for group, rate in self._full_rates:
            group["lr"] = rate
        self._full_rates = []

    def remove(self) -> None:
        """Restore the rates and remove the hooks from the optimizers."""
        self.restore_rates()
        for handle in self._handles:
            handle.remove()

    def _lower_rates(self, optimizer: Optimizer, *_: Any) -> None:
        self.restore_rates()
        step = self._current_step()
        for group in optimizer.param_groups:
            ramp = self._ramps.get(id(group["params"][0])) if group["params"] else None
            if ramp and ramp.factor(step) < 1:
                self._full_rates.append((group, group["lr"]))
                group["lr"] = group["lr"] * ramp.factor(step)

    def _restore_after_step(self, *_: Any) -> None:
        self.restore_rates()

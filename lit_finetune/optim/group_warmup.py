"""Let the rate of groups that have just joined rise, without a scheduler of any kind noticing.

Most schedulers compute the next rate from the present one, so a rate that someone else has lowered
would stay low. Here it is lower while the optimizer makes its step, and at no other time.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle


@dataclass(frozen=True, slots=True)
class Rise:
    """The rate rises over so many steps, the first of which is step `begin` of the run."""

    begin: int
    steps: int

    def factor(self, step: int) -> float:
        """The share of the rate at a step of the run.

        >>> [Rise(begin=10, steps=4).factor(step) for step in range(10, 16)]
        [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
        """
        return min(1.0, (step - self.begin + 1) / self.steps)


class Warmup:
    """Lower the rates of some parameters for the duration of each step of their optimizers.

    Args:
        optimizers: All optimizers of the run.
        step_now: How many steps the run has made.
    """

    def __init__(self, optimizers: Sequence[Optimizer], step_now: Callable[[], int]) -> None:
        self._optimizers = optimizers
        self._step_now = step_now
        self._rises: dict[int, Rise] = {}
        self._nominal: list[tuple[dict[str, Any], Any]] = []
        self._handles: list[RemovableHandle] = []

    def add(self, parameters: Iterable[nn.Parameter], rise: Rise) -> None:
        """Let the rate of parameters rise, which fill groups of their own."""
        self._rises.update({id(parameter): rise for parameter in parameters})
        if not self._handles:
            for optimizer in self._optimizers:
                self._handles.append(optimizer.register_step_pre_hook(self._lower))
                self._handles.append(optimizer.register_step_post_hook(self._put_back))

    def put_back(self) -> None:
        """Give the groups their rates back; a step that was interrupted has not done so itself."""
        for group, rate in self._nominal:
            group["lr"] = rate
        self._nominal = []

    def remove(self) -> None:
        """Leave the optimizers as they would be without this."""
        self.put_back()
        for handle in self._handles:
            handle.remove()

    def _lower(self, optimizer: Optimizer, *_: Any) -> None:
        self.put_back()
        step = self._step_now()
        for group in optimizer.param_groups:
            rise = self._rises.get(id(group["params"][0])) if group["params"] else None
            if rise and rise.factor(step) < 1:
                self._nominal.append((group, group["lr"]))
                group["lr"] = group["lr"] * rise.factor(step)

    def _put_back(self, *_: Any) -> None:
        self.put_back()

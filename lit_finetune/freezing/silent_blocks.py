"""Blocks that should train and get no gradient, told once after the first steps of a phase."""

from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from lit_finetune._errors import some_of
from lit_finetune.blocks.block import Block

_STEPS = 8
"""A block that is left out at random, half of the time, is silent for as many in 1 of 250 runs."""


class SilentBlocks:
    """The blocks that train since a phase began, and have had no gradient since.

    >>> head = nn.Linear(2, 2)
    >>> silent = SilentBlocks()
    >>> silent.add([Block("head", (), ("weight", "bias"))], dict(head.named_parameters()))
    >>> silent.look()
    >>> silent.finish()
    {'head': ('weight', 'bias')}
    """

    def __init__(self) -> None:
        self._waiting: dict[str, tuple[str, ...]] = {}
        self._parameters: dict[str, nn.Parameter] = {}
        self.steps = 0
        """How many were looked at since something was added."""

    def add(self, blocks: Iterable[Block], parameters: Mapping[str, nn.Parameter]) -> None:
        """Wait for a gradient in each of the blocks.

        Args:
            blocks: Those of the network.
            parameters: What has begun to train, by name.
        """
        self.steps = 0
        for block in blocks:
            if names := tuple(name for name in block.parameters if name in parameters):
                self._waiting[block.name] = names
        self._parameters.update(parameters)

    def look(self) -> None:
        """See before a step whose turn it was."""
        if not self._waiting:
            return
        self.steps += 1
        self._waiting = {
            block: names
            for block, names in self._waiting.items()
            if all(self._parameters[name].grad is None for name in names)
        }

    def take_due(self) -> dict[str, tuple[str, ...]]:
        """The blocks that were silent for long enough; they are waited for no longer."""
        return self.finish() if self._waiting and self.steps >= _STEPS else {}

    def finish(self) -> dict[str, tuple[str, ...]]:
        """The blocks that were silent until now, and what of them trains."""
        found = self._waiting if self.steps else {}
        self._waiting, self._parameters = {}, {}
        return found


def silent_line(silent: Mapping[str, Sequence[str]], steps: int) -> str:
    """What is said of silent blocks.

    >>> silent_line({"stem": ["net.0.weight"]}, 8)[:63]
    'No gradient has reached the block stem (net.0.weight) in 8 step'
    """
    blocks = [f"{name} ({some_of(names, 1)})" for name, names in silent.items()]
    which, verb = ("blocks", "they do") if len(blocks) > 1 else ("block", "it does")
    return (
        f"No gradient has reached the {which} {some_of(blocks, 3)} in"
        f" {steps} step{'s' * (steps != 1)}, so {verb} not train although the schedule says so:"
        " `forward` or `training_step` leaves out what comes of it, or cuts it off by"
        " `torch.no_grad()` or `detach()`."
    )

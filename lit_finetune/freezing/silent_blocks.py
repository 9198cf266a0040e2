"""Report blocks that should train but get no gradient in the first steps of a phase."""

from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from lit_finetune._errors import some_of
from lit_finetune.blocks.block import Block

_STEPS = 8
"""A block that is skipped at random half of the time has no gradient for so many steps in 1 of
250 runs."""


class SilentBlocks:
    """The blocks that train since a phase began, and have had no gradient so far.

    >>> head = nn.Linear(2, 2)
    >>> silent = SilentBlocks()
    >>> silent.add([Block("head", (), ("weight", "bias"))], dict(head.named_parameters()))
    >>> silent.check()
    >>> silent.finish()
    {'head': ('weight', 'bias')}
    """

    def __init__(self) -> None:
        self._pending: dict[str, tuple[str, ...]] = {}
        self._parameters: dict[str, nn.Parameter] = {}
        self.steps = 0
        """The number of checked steps since the last `add`."""

    def add(self, blocks: Iterable[Block], parameters: Mapping[str, nn.Parameter]) -> None:
        """Wait for a gradient in each of the blocks.

        Args:
            blocks: The network's blocks.
            parameters: The parameters that start to train, by name.
        """
        self.steps = 0
        for block in blocks:
            if names := tuple(name for name in block.parameters if name in parameters):
                self._pending[block.name] = names
        self._parameters.update(parameters)

    def check(self) -> None:
        """Before a step, drop the blocks that have a gradient."""
        if not self._pending:
            return
        self.steps += 1
        self._pending = {
            block: names for block, names in self._pending.items() if self._is_silent(names)
        }

    def _is_silent(self, names: Iterable[str]) -> bool:
        """Whether these parameters train, and none of them has a gradient."""
        parameters = [self._parameters[name] for name in names]
        trains = all(
            parameter.requires_grad for parameter in parameters
        )  # a later phase may end it
        return trains and all(parameter.grad is None for parameter in parameters)

    def pop_silent(self) -> dict[str, tuple[str, ...]]:
        """The blocks without a gradient after enough steps; they are not checked again."""
        return self.finish() if self._pending and self.steps >= _STEPS else {}

    def finish(self) -> dict[str, tuple[str, ...]]:
        """The blocks without a gradient so far, with their parameters that should train."""
        pending = self._pending if self.steps else {}
        silent = {block: names for block, names in pending.items() if self._is_silent(names)}
        self._pending, self._parameters = {}, {}
        return silent


def silent_line(silent: Mapping[str, Sequence[str]], steps: int) -> str:
    """The message about blocks without a gradient.

    >>> silent_line({"stem": ["net.0.weight"]}, 8)[:63]
    'No gradient has reached the block stem (net.0.weight) in 8 step'
    """
    blocks = [f"{name} ({some_of(names, 1)})" for name, names in silent.items()]
    which, verb = ("blocks", "they do") if len(blocks) > 1 else ("block", "it does")
    return (
        f"No gradient has reached the {which} {some_of(blocks, 3)} in"
        f" {steps} step{'s' * (steps != 1)}, so {verb} not train although the schedule says so:"
        " `forward` or `training_step` does not use its output, or detaches it by"
        " `torch.no_grad()` or `detach()`."
    )

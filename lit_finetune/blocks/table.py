"""A network's blocks as a table: modules, parameters, output shape and cost."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from lit_finetune.blocks.block import list_blocks
from lit_finetune.modules.compiled import force_eager
from lit_finetune.modules.eval_mode import eval_mode

MAX_MODULES_WIDTH = 44
"""The most characters of a block's module names that the table shows."""


@dataclass(frozen=True, slots=True)
class BlockRow:
    """A row of the table: one block."""

    name: str
    modules: tuple[str, ...]
    parameters: int
    """The number of its parameters' elements."""
    share: float
    """Its fraction of all the network's parameters."""
    output: tuple[int, ...] | None
    """The shape of its output for one image; None if none of its modules is called."""
    multiply_adds: int
    """Of its matrix products and convolutions in the forward of one image."""


def describe_blocks(
    network: nn.Module, image: Tensor, *, head_name: str | None = None
) -> list[BlockRow]:
    """A row for each block of a network, from the input to the head.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> for row in describe_blocks(net, torch.ones(1, 4)):
    ...     print(row.name, row.parameters, row.output, row.multiply_adds)
    0 40 (8,) 32
    head 18 (2,) 16

    Args:
        network: It runs once, in eval mode.
        image: A batch of images, of shape (N, C, H, W); the cost is divided by N.
        head_name: As in `list_blocks`.
    """
    blocks = list_blocks(network, head_name)
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    owners = {path: block.name for block in blocks for path in block.modules}
    counter = FlopCounterMode(display=False)
    costs: dict[str, int] = dict.fromkeys((block.name for block in blocks), 0)
    outputs: dict[str, tuple[int, ...]] = {}
    measuring = _measure_blocks(network, owners, counter, costs, outputs)
    with torch.no_grad(), eval_mode(network), force_eager(), counter, measuring:
        network(image)
    return [
        BlockRow(
            name=block.name,
            modules=block.modules,
            parameters=sum(sizes[name] for name in block.parameters),
            share=sum(sizes[name] for name in block.parameters) / max(1, sum(sizes.values())),
            output=outputs.get(block.name),
            multiply_adds=costs[block.name] // (2 * len(image)),
        )
        for block in blocks
    ]


def block_table(rows: Sequence[BlockRow]) -> str:
    """The rows as aligned text, with a line of totals.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> print(block_table(describe_blocks(net, torch.ones(1, 4))))
    block  modules  parameters   share  output  multiply-adds
    0      0                40   69.0%  8                  32
    head   1, 2             18   31.0%  2                  16
    all 2                   58  100.0%                     48
    """
    table = [("block", "modules", "parameters", "share", "output", "multiply-adds")]
    table += [
        (
            row.name,
            _shorten_names(row.modules),
            f"{row.parameters:,}",
            f"{row.share:.1%}",
            "-" if row.output is None else " x ".join(map(str, row.output)),
            _short_number(row.multiply_adds),
        )
        for row in rows
    ]
    parameters = sum(row.parameters for row in rows)
    cost = _short_number(sum(row.multiply_adds for row in rows))
    table.append((f"all {len(rows)}", "", f"{parameters:,}", "100.0%", "", cost))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        f"{name:<{widths[0]}}  {modules:<{widths[1]}}  {number:>{widths[2]}}  {share:>{widths[3]}}"
        f"  {output:<{widths[4]}}  {work:>{widths[5]}}"
        for name, modules, number, share, output, work in table
    )


@contextmanager
def _measure_blocks(
    network: nn.Module,
    owners: dict[str, str],
    counter: FlopCounterMode,
    costs: dict[str, int],
    outputs: dict[str, tuple[int, ...]],
) -> Iterator[None]:
    """Record the output shape and the operations of each block, within a context."""
    with ExitStack() as handles:
        for path, block in owners.items():
            flops_before: list[int] = []

            def before_forward(*_: object, flops_before: list[int] = flops_before) -> None:
                flops_before.append(counter.get_total_flops())

            def after_forward(
                _: nn.Module,
                __: object,
                output: object,
                flops_before: list[int] = flops_before,
                block: str = block,
            ) -> None:
                costs[block] += counter.get_total_flops() - flops_before.pop()
                tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
                outputs[block] = tuple(tensors[0].shape[1:]) if tensors else ()

            module = network.get_submodule(path)
            handles.callback(module.register_forward_pre_hook(before_forward).remove)
            handles.callback(module.register_forward_hook(after_forward).remove)
        yield


def _shorten_names(modules: Sequence[str]) -> str:
    """The names of modules, shortened to `MAX_MODULES_WIDTH` characters.

    >>> _shorten_names(["features.0", "features.1", "features.2", "features.3", "features.4"])
    'features.0, features.1, … features.4 (5)'
    """
    if len(", ".join(modules)) <= MAX_MODULES_WIDTH or len(modules) == 1:
        return ", ".join(modules)
    end = f", … {modules[-1]} ({len(modules)})"
    shown = modules[:1]
    while len(", ".join(modules[: len(shown) + 1]) + end) <= MAX_MODULES_WIDTH:
        shown = modules[: len(shown) + 1]
    return ", ".join(shown) + end


def _short_number(number: int) -> str:
    """A large number in millions or billions.

    >>> [_short_number(n) for n in (48, 12_300, 4_560_000, 1_814_000_000)]
    ['48', '12,300', '4.56 M', '1.81 G']
    """
    for unit, letter in ((10**9, "G"), (10**6, "M")):
        if number >= unit:
            return f"{number / unit:.2f} {letter}"
    return f"{number:,}"

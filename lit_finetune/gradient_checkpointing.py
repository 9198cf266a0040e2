"""Compute activations again in the backward pass rather than keep them: less memory, more time.

A block is made of units, such as a ResNet's bottlenecks. A unit that has been prepared keeps only
its inputs when a graph goes through it, and runs once more when its gradients are due. Where there
is no graph, in the frozen blocks before the first that trains and in evaluation, it runs as ever:
what is recomputed follows what trains from step to step, and nobody has to be told.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

from lit_finetune.blocks.block import Block


def recompute_units(model: nn.Module, blocks: Sequence[Block]) -> tuple[str, ...]:
    """Let the units of all blocks but the head run again in the backward pass.

    Gradients, running statistics and what dropout draws are the same bits as without. The modules
    stay what they are, under the same names; a hook on a module inside a unit sees both runs.

    Args:
        model: What the names of the blocks' modules refer to.
        blocks: From the input to the head.

    Returns:
        The names of the units: blocks, or the parts that blocks repeat. Single layers are none:
        they would save nothing.
    """
    modules = dict(model.named_modules())
    paths = [path for block in blocks[:-1] for path in block.modules]
    units = {name: unit for path in paths for name, unit in _units(path, modules[path])}
    for unit in units.values():
        unit.forward = partial(_run, unit, unit.forward)
    return tuple(units)


def _units(path: str, module: nn.Module) -> list[tuple[str, nn.Module]]:
    """The parts that a module repeats, however deep they are in it, or else itself; by name."""
    children = dict(module.named_children())
    is_called = not isinstance(module, nn.ModuleList) and "_orig_mod" not in children
    if is_called and not _repeats(module):
        stages = {name: child for name, child in children.items() if _repeats(child)}
        if not stages:
            return [(path, module)] if children and _num_layers(module) else []
        children = stages
    return [unit for name, child in children.items() for unit in _units(f"{path}.{name}", child)]


def _repeats(module: nn.Module) -> bool:
    """Whether most layers of a module are in parts of one kind, as in a stage of a ResNet."""
    sizes = {child: _num_layers(child) for child in module.children()}
    parts = [child for child, size in sizes.items() if size > 1 and not _is_chain(child)]
    kinds = Counter(map(type, parts))
    most = 2 * sum(sizes[part] for part in parts) > _num_layers(module)
    return most and max(kinds.values(), default=0) > 1


def _is_chain(module: nn.Module) -> bool:
    """Whether it is a plain sequence of single layers."""
    return isinstance(module, nn.Sequential) and all(_num_layers(part) < 2 for part in module)


def _num_layers(module: nn.Module) -> int:
    """How many modules in it hold weights that are more than a vector."""
    return sum(any(p.ndim > 1 for p in m.parameters(recurse=False)) for m in module.modules())


def _run(unit: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A unit's forward: kept as a recipe where there will be gradients, and as it is elsewhere."""
    leaves, structure = tree_flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    has_graph = torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in (*tensors, *unit.parameters())
    )
    if not tensors or not has_graph:
        return forward(*args, **kwargs)
    if torch.compiler.is_compiling():  # the compiler takes care of buffers itself, but of no more
        return checkpoint(partial(forward, **kwargs), *args, use_reentrant=False)

    def call(*leaves: Any) -> Any:
        args, kwargs = tree_unflatten(leaves, structure)
        return forward(*args, **kwargs)

    # Tensors go in one by one, so that torch sees to it that nobody changes one meanwhile.
    return checkpoint(call, *leaves, use_reentrant=False, context_fn=partial(_contexts, unit))


_Copies = list[tuple[nn.Module, str, Tensor]]


def _contexts(unit: nn.Module) -> tuple[Any, Any]:
    """What surrounds the two runs of a unit: the second finds its buffers as the first did."""
    copies = [
        (module, name, buffer.clone())
        for module in unit.modules()
        if module.training  # the others keep their statistics
        for name, buffer in module.named_buffers(recurse=False)
    ]
    return nullcontext(), _AsBefore(copies)


class _AsBefore:
    """Modules hold copies of their buffers, and afterwards again what they hold now."""

    def __init__(self, copies: _Copies) -> None:
        self._copies = copies

    def __enter__(self) -> None:
        self._now = [module._buffers[name] for module, name, _ in self._copies]
        for module, name, copy in self._copies:
            module._buffers[name] = copy.clone()  # there may be another backward pass

    def __exit__(self, *error: object) -> None:
        for (module, name, _), buffer in zip(self._copies, self._now, strict=True):
            module._buffers[name] = buffer

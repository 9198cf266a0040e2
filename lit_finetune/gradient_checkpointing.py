"""Recompute activations in the backward pass instead of storing them: less memory, more time.

A block consists of units, such as a ResNet's bottlenecks. If a unit is part of the autograd graph,
it stores only its inputs, and runs again in the backward pass. Without a graph, in the frozen
blocks before the first trainable one and in evaluation, it runs as always: recomputation follows
the trainable blocks from step to step without being configured.
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
    """Recompute the units of all blocks except the head in the backward pass.

    Gradients, running statistics and dropout are bit for bit the same as without. The modules and
    their names do not change; a hook on a module inside a unit is called in both runs.

    Args:
        model: The module that the names of the blocks' modules refer to.
        blocks: From the input to the head.

    Returns:
        The names of the units: blocks, or the repeated parts of blocks. Single layers are not
        units: they would save nothing.
    """
    modules = dict(model.named_modules())
    paths = [path for block in blocks[:-1] for path in block.modules]
    units = {name: unit for path in paths for name, unit in _units(path, modules[path])}
    for unit in units.values():
        unit.forward = partial(_checkpointed_forward, unit, unit.forward)
    return tuple(units)


def _units(path: str, module: nn.Module) -> list[tuple[str, nn.Module]]:
    """The repeated parts of a module, at any depth, or else the module itself; with their names."""
    children = dict(module.named_children())
    is_called = not isinstance(module, nn.ModuleList) and "_orig_mod" not in children
    if is_called and not _is_stage(module):
        stages = {name: child for name, child in children.items() if _is_stage(child)}
        if not stages:
            return [(path, module)] if children and _num_layers(module) else []
        children = stages
    return [unit for name, child in children.items() for unit in _units(f"{path}.{name}", child)]


def _is_stage(module: nn.Module) -> bool:
    """Whether most layers of a module are in parts of one type, as in a stage of a ResNet."""
    sizes = {child: _num_layers(child) for child in module.children()}
    parts = [child for child, size in sizes.items() if size > 1 and not _is_chain(child)]
    kinds = Counter(map(type, parts))
    is_majority = 2 * sum(sizes[part] for part in parts) > _num_layers(module)
    return is_majority and max(kinds.values(), default=0) > 1


def _is_chain(module: nn.Module) -> bool:
    """Whether a module is a plain sequence of single layers."""
    return isinstance(module, nn.Sequential) and all(_num_layers(part) < 2 for part in module)


def _num_layers(module: nn.Module) -> int:
    """The number of submodules with a parameter of more than one dimension."""
    return sum(any(p.ndim > 1 for p in m.parameters(recurse=False)) for m in module.modules())


def _checkpointed_forward(
    unit: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    """A unit's forward: checkpointed if there will be gradients, unchanged otherwise."""
    leaves, structure = tree_flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    has_graph = torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in (*tensors, *unit.parameters())
    )
    if not tensors or not has_graph:
        return forward(*args, **kwargs)
    if torch.compiler.is_compiling():  # the compiler restores buffers itself
        return checkpoint(partial(forward, **kwargs), *args, use_reentrant=False)

    def call(*leaves: Any) -> Any:
        args, kwargs = tree_unflatten(leaves, structure)
        return forward(*args, **kwargs)

    # Tensors are passed one by one, so that torch detects changes in place before the second run.
    return checkpoint(
        call, *leaves, use_reentrant=False, context_fn=partial(_recompute_contexts, unit)
    )


_BufferCopies = list[tuple[nn.Module, str, Tensor]]


def _recompute_contexts(unit: nn.Module) -> tuple[Any, Any]:
    """The contexts of a unit's two runs: the second one starts with the buffers of the first."""
    copies = [
        (module, name, buffer.clone())
        for module in unit.modules()
        if module.training  # other modules do not update their statistics
        for name, buffer in module.named_buffers(recurse=False)
    ]
    return nullcontext(), _RestoredBuffers(copies)


class _RestoredBuffers:
    """Replaces the buffers of modules by copies, and restores them afterwards."""

    def __init__(self, copies: _BufferCopies) -> None:
        self._copies = copies

    def __enter__(self) -> None:
        self._current = [module._buffers[name] for module, name, _ in self._copies]
        for module, name, copy in self._copies:
            module._buffers[name] = copy.clone()  # there may be another backward pass

    def __exit__(self, *error: object) -> None:
        for (module, name, _), buffer in zip(self._copies, self._current, strict=True):
            module._buffers[name] = buffer

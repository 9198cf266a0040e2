"""Apply to a network what trains and what does not, and hold it there."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from lit_finetune.blocks import Block
from lit_finetune.flat import modules_by_name, parameters_by_name
from lit_finetune.norms import is_norm, norm_parameters


def set_trainable(model: nn.Module, names: Collection[str]) -> bool:
    """Let the named parameters of a model train, and freeze all others.

    A frozen parameter loses its gradient: an optimizer would still step with what it holds.

    Returns:
        Whether anything changed. A wrapper such as DistributedDataParallel must follow if so.
    """
    changed = False
    for name, parameter in parameters_by_name(model).items():
        trains = name in names
        if parameter.requires_grad != trains:
            parameter.requires_grad_(trains)
            changed = True
        if not trains:
            parameter.grad = None
    return changed


def frozen_modules(
    model: nn.Module, blocks: Sequence[Block], *, norms_train: bool = False
) -> list[nn.Module]:
    """The modules to keep in eval mode, so that batch statistics and dropout stand still.

    A module is frozen when it has parameters and none of them trains; so are the modules inside
    it, and those without parameters (dropout, drop-path) that belong to a frozen block. One that
    is also used outside of all these is not. A normalisation layer of which some parameters train
    and some do not (biases alone) is frozen too: its statistics stand still until all of it trains.

    Args:
        model: Some of its parameters require a gradient, some do not.
        blocks: The model's blocks.
        norms_train: Whether normalisation layers train in frozen blocks too; they are then left
            out of the result, and do not make the rest of their block count as trained.
    """
    norms = norm_parameters(model) if norms_train else frozenset()
    named = parameters_by_name(model, remove_duplicate=False)
    live = {name for name, parameter in named.items() if parameter.requires_grad} - norms
    alive, known = _ancestors(live), _ancestors(named)
    modules = list(modules_by_name(model, remove_duplicate=False))
    roots = {name for name, _ in modules if name and name in known and name not in alive}
    for block in blocks:
        if not live.intersection(block.parameters):
            roots.update(name for name in block.modules if name not in alive)
    roots.update(name for name, module in modules if _is_partly_live(name, module, live))
    awake = {id(module) for name, module in modules if not _is_within(name, roots)}
    found = {id(m): m for name, m in modules if _is_within(name, roots) and id(m) not in awake}
    return [m for m in found.values() if not (norms_train and is_norm(m))]


def hold(frozen: Iterable[nn.Module]) -> None:
    """Put modules that someone has set to train back into eval mode.

    Lightning sets modes on its own account (before training, around validation), so this is
    called whenever that can have happened. It sets the flag alone: every module is in the list.
    """
    for module in frozen:
        if module.training:
            module.training = False


def release(frozen: Iterable[nn.Module]) -> None:
    """Let modules that were held train again."""
    for module in frozen:
        module.training = True


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode, and each of its modules back into its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _is_partly_live(name: str, module: nn.Module, live: Collection[str]) -> bool:
    """Whether it is a normalisation layer of which some parameters train, and some do not."""
    if not is_norm(module):
        return False
    trains = [f"{name}.{own}" in live for own, _ in module.named_parameters(recurse=False)]
    return any(trains) and not all(trains)


def _is_within(name: str, roots: Collection[str]) -> bool:
    """Whether a module is one of the roots, or inside one."""
    parts = name.split(".")
    return any(".".join(parts[:length]) in roots for length in range(1, len(parts) + 1))


def _ancestors(parameters: Iterable[str]) -> set[str]:
    """The names of all modules around these parameters."""
    return {
        ".".join(parts[:length])
        for parts in (name.split(".") for name in parameters)
        for length in range(1, len(parts))
    }

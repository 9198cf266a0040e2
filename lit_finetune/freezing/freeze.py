"""Apply to a network what trains and what does not, and hold it there."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from torch import nn

from lit_finetune.blocks.block import Block
from lit_finetune.blocks.norm_layers import is_norm, norm_parameters
from lit_finetune.modules.fsdp1 import modules_by_name, parameters_by_name, unpruned_name

_NOTES = "_lit_finetune_notes"
"""Where a module keeps, for each parameter, whether it was still before, and whether it trains."""


def set_trainable(
    model: nn.Module,
    names: Collection[str],
    *,
    user_frozen: Collection[str] = frozenset(),
    untouched: Collection[str] = frozenset(),
) -> bool:
    """Let the named parameters of a model train, and freeze all others.

    A frozen parameter loses its gradient: an optimizer would still step with what it holds.

    Args:
        model: Its modules take note of what was done, for `with_user_frozen` in another run.
        names: The parameters that train.
        user_frozen: Those that were fixed before any schedule came.
        untouched: Those that are left as they are.

    Returns:
        Whether anything changed. A wrapper such as DistributedDataParallel must follow if so.
    """
    changed = False
    modules: dict[str, nn.Module] = {}
    for name, module in modules_by_name(model, remove_duplicate=False):
        modules.setdefault(name, module)
    for name, parameter in parameters_by_name(model).items():
        if name in untouched:
            continue
        trains = name in names or unpruned_name(name) in names
        if parameter.requires_grad != trains:
            parameter.requires_grad_(trains)
            changed = True
        if not trains:
            parameter.grad = None
        path, _, own = name.rpartition(".")
        _notes_of(modules[path])[own] = (name in user_frozen, trains)
    return changed


def restore_trainable(model: nn.Module, before: Mapping[str, bool]) -> None:
    """Let parameters require a gradient as before, where a trial leaves no trace."""
    parameters = parameters_by_name(model)
    for name, trains in before.items():
        parameters[name].requires_grad_(trains)
        notes, own = _notes_on(model, name)
        was_still, _ = notes.get(own, (not trains, trains))
        notes[own] = (was_still, trains)


def with_user_frozen(model: nn.Module, blocks: Iterable[Block]) -> list[Block]:
    """The blocks, with what of them was fixed before any schedule came.

    That is what requires no gradient, unless a schedule has frozen it in an earlier run; and what
    a schedule has trained since, if nobody but schedules has touched it. Where nothing before the
    head requires a gradient, someone has frozen the backbone whole: that leaves the rest to the
    schedule, and nothing counts as fixed.
    """
    user_frozen = {name for name, p in model.named_parameters() if is_fixed(model, name, p)}
    *backbone, head = blocks
    if user_frozen.issuperset(name for block in backbone for name in block.free):
        user_frozen.clear()
    return [
        replace(block, user_frozen=tuple(name for name in block.free if name in user_frozen))
        for block in (*backbone, head)
    ]


def is_fixed(model: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    """Whether `requires_grad` was False before any schedule, as in `with_user_frozen`."""
    notes, own = _notes_on(model, name)
    was_still, trained = notes.get(own, (False, not parameter.requires_grad))
    is_as_left = parameter.requires_grad == trained
    return was_still if is_as_left else not parameter.requires_grad


def _notes_on(model: nn.Module, name: str) -> tuple[dict[str, tuple[bool, bool]], str]:
    """What the module that holds a parameter has noted, and the parameter's name in it.

    There it stays when the module is copied, or becomes a part of another one.
    """
    path, _, own = name.rpartition(".")
    return _notes_of(model.get_submodule(path)), own


def _notes_of(module: nn.Module) -> dict[str, tuple[bool, bool]]:
    notes: dict[str, tuple[bool, bool]] = module.__dict__.setdefault(_NOTES, {})
    return notes


def frozen_modules(
    model: nn.Module,
    blocks: Sequence[Block],
    *,
    norms_train: bool = False,
    untouched: Collection[str] = frozenset(),
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
        untouched: Parameters whose modules keep the mode that they are in.
    """
    norms = norm_parameters(model) if norms_train else frozenset()
    named = parameters_by_name(model, remove_duplicate=False)
    live = {name for name, parameter in named.items() if parameter.requires_grad} - norms
    live |= {*map(unpruned_name, live), *untouched}
    alive, known = _ancestors(live), _ancestors(named)
    modules = list(modules_by_name(model, remove_duplicate=False))
    roots = {name for name, _ in modules if name and name in known and name not in alive}
    for block in blocks:
        if not live.intersection(block.parameters):
            roots.update(name for name in block.modules if name not in alive)
    roots.update(name for name, module in modules if _is_partly_live(name, module, live))
    at_rest = [_is_within(name, roots) for name, _ in modules]
    awake = {id(m) for (_, m), rests in zip(modules, at_rest, strict=True) if not rests}
    found = {
        id(m): m
        for (_, m), rests in zip(modules, at_rest, strict=True)
        if rests and id(m) not in awake
    }
    return [m for m in found.values() if not (norms_train and is_norm(m))]


def enforce_eval(frozen: Iterable[nn.Module]) -> None:
    """Put modules that someone has set to train back into eval mode.

    Lightning sets modes on its own account (before training, around validation), so this is
    called whenever that can have happened. It sets the flag alone: every module is in the list.
    """
    for module in frozen:
        if module.training:
            module.training = False


def restore_training(frozen: Iterable[nn.Module]) -> None:
    """Let modules that were held train again."""
    for module in frozen:
        module.training = True


def _is_partly_live(name: str, module: nn.Module, live: Collection[str]) -> bool:
    """Whether it is a normalisation layer of which some parameters train, and some do not."""
    if not is_norm(module):
        return False
    trains = [f"{name}.{own}" in live for own, _ in module.named_parameters(recurse=False)]
    return any(trains) and not all(trains)


def _is_within(name: str, roots: Collection[str]) -> bool:
    """Whether a module is one of the roots, or inside one."""
    while name not in roots:
        name = name.rpartition(".")[0]
        if not name:
            return False
    return True


def _ancestors(parameters: Iterable[str]) -> set[str]:
    """The names of all modules around these parameters."""
    found: set[str] = set()
    for name in parameters:
        around = name.rpartition(".")[0]
        while around and around not in found:
            found.add(around)
            around = around.rpartition(".")[0]
    return found

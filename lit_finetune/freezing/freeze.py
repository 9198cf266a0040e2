"""Freeze and unfreeze parameters and modules of a network."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from torch import nn

from lit_finetune.blocks.block import Block
from lit_finetune.blocks.norm_layers import is_norm, norm_parameters
from lit_finetune.modules.fsdp1 import modules_by_name, parameters_by_name, unpruned_name

_ATTRIBUTE = "_lit_finetune_notes"
"""The attribute of a module that holds, for each parameter, whether the user froze it and whether
it was last set to train."""


def set_trainable(
    model: nn.Module,
    names: Collection[str],
    *,
    user_frozen: Collection[str] = frozenset(),
    excluded: Collection[str] = frozenset(),
) -> bool:
    """Let the named parameters of a model train, and freeze all others.

    The gradient of a frozen parameter is removed: an optimizer would still apply it.

    Args:
        model: The result is stored in its modules, for `with_user_frozen` in a later run.
        names: The parameters that train.
        user_frozen: Those that the user froze before the run.
        excluded: Those that are not changed.

    Returns:
        Whether anything changed. A wrapper such as DistributedDataParallel must follow if so.
    """
    changed = False
    modules: dict[str, nn.Module] = {}
    for name, module in modules_by_name(model, remove_duplicate=False):
        modules.setdefault(name, module)
    for name, parameter in parameters_by_name(model).items():
        if name in excluded:
            continue
        trains = name in names or unpruned_name(name) in names
        if parameter.requires_grad != trains:
            parameter.requires_grad_(trains)
            changed = True
        if not trains:
            parameter.grad = None
        path, _, attribute = name.rpartition(".")
        _notes_of_module(modules[path])[attribute] = (name in user_frozen, trains)
    return changed


def restore_trainable(model: nn.Module, before: Mapping[str, bool]) -> None:
    """Restore `requires_grad` after a trial run."""
    parameters = parameters_by_name(model)
    for name, trains in before.items():
        parameters[name].requires_grad_(trains)
        notes, attribute = _notes_of_parameter(model, name)
        was_frozen, _ = notes.get(attribute, (not trains, trains))
        notes[attribute] = (was_frozen, trains)


def with_user_frozen(model: nn.Module, blocks: Iterable[Block]) -> list[Block]:
    """The blocks, with the parameters that the user froze before any schedule.

    These are the parameters that require no gradient, except those that a schedule froze in an
    earlier run; and those that a schedule has trained since, if only schedules changed them. If no
    parameter before the head requires a gradient, the user has frozen the whole backbone for the
    schedule to unfreeze, and none counts as user-frozen.
    """
    user_frozen = {name for name, p in model.named_parameters() if is_user_frozen(model, name, p)}
    *backbone, head = blocks
    if user_frozen.issuperset(name for block in backbone for name in block.free):
        user_frozen.clear()
    return [
        replace(block, user_frozen=tuple(name for name in block.free if name in user_frozen))
        for block in (*backbone, head)
    ]


def is_user_frozen(model: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    """Whether `requires_grad` was False before any schedule, as in `with_user_frozen`."""
    notes, attribute = _notes_of_parameter(model, name)
    was_frozen, trained = notes.get(attribute, (False, not parameter.requires_grad))
    is_unchanged = parameter.requires_grad == trained
    return was_frozen if is_unchanged else not parameter.requires_grad


def _notes_of_parameter(model: nn.Module, name: str) -> tuple[dict[str, tuple[bool, bool]], str]:
    """The notes in the module that holds a parameter, and the parameter's name in it.

    They stay with the module when it is copied, or becomes a part of another one.
    """
    path, _, attribute = name.rpartition(".")
    return _notes_of_module(model.get_submodule(path)), attribute


def _notes_of_module(module: nn.Module) -> dict[str, tuple[bool, bool]]:
    notes: dict[str, tuple[bool, bool]] = module.__dict__.setdefault(_ATTRIBUTE, {})
    return notes


def frozen_modules(
    model: nn.Module,
    blocks: Sequence[Block],
    *,
    norms_train: bool = False,
    excluded: Collection[str] = frozenset(),
) -> list[nn.Module]:
    """The modules to keep in eval mode, so that batch statistics and dropout are frozen.

    A module is frozen if it has parameters and none of them trains; so are its submodules, and
    modules without parameters (dropout, drop-path) in a frozen block. A module that is also used
    elsewhere is not. A normalisation layer with only some trainable parameters (biases) is frozen,
    too: its statistics do not change until all of it trains.

    Args:
        model: A model with its `requires_grad` set.
        blocks: The model's blocks.
        norms_train: Whether normalisation layers train in frozen blocks, too; they are then left
            out of the result, and the rest of their block stays frozen.
        excluded: Parameters whose modules keep their mode.
    """
    norms = norm_parameters(model) if norms_train else frozenset()
    named = parameters_by_name(model, remove_duplicate=False)
    trainable = {name for name, parameter in named.items() if parameter.requires_grad} - norms
    trainable |= {*map(unpruned_name, trainable), *excluded}
    with_trainable, with_parameters = _parent_modules(trainable), _parent_modules(named)
    modules = list(modules_by_name(model, remove_duplicate=False))
    roots = {
        name
        for name, _ in modules
        if name and name in with_parameters and name not in with_trainable
    }
    for block in blocks:
        if not trainable.intersection(block.parameters):
            roots.update(name for name in block.modules if name not in with_trainable)
    roots.update(name for name, module in modules if _is_partly_trainable(name, module, trainable))
    is_frozen = [_is_within(name, roots) for name, _ in modules]
    active = {id(m) for (_, m), frozen in zip(modules, is_frozen, strict=True) if not frozen}
    found = {
        id(m): m
        for (_, m), frozen in zip(modules, is_frozen, strict=True)
        if frozen and id(m) not in active
    }
    return [m for m in found.values() if not (norms_train and is_norm(m))]


def enforce_eval(frozen: Iterable[nn.Module]) -> None:
    """Put frozen modules back into eval mode.

    Lightning sets modes itself (before training, around validation), so this is called whenever
    that may have happened. It sets only the flag of each module, since all submodules are listed.
    """
    for module in frozen:
        if module.training:
            module.training = False


def restore_training(frozen: Iterable[nn.Module]) -> None:
    """Put modules into training mode."""
    for module in frozen:
        module.training = True


def _is_partly_trainable(name: str, module: nn.Module, trainable: Collection[str]) -> bool:
    """Whether a module is a normalisation layer with some trainable parameters and some frozen."""
    if not is_norm(module):
        return False
    trains = [
        f"{name}.{attribute}" in trainable
        for attribute, _ in module.named_parameters(recurse=False)
    ]
    return any(trains) and not all(trains)


def _is_within(name: str, roots: Collection[str]) -> bool:
    """Whether a module is one of the roots, or inside one."""
    while name not in roots:
        name = name.rpartition(".")[0]
        if not name:
            return False
    return True


def _parent_modules(parameters: Iterable[str]) -> set[str]:
    """The names of all parent modules of these parameters."""
    found: set[str] = set()
    for name in parameters:
        parent = name.rpartition(".")[0]
        while parent and parent not in found:
            found.add(parent)
            parent = parent.rpartition(".")[0]
    return found

"""Tensors that have a shape and no values, so that a network can run without computing."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only
from typing_extensions import override


class GhostError(Exception):
    """What ghosts cannot go through. The message goes on from: it cannot, since …."""


class Passage:
    """One run of a network: on ghosts up to some place, and on real values from there on."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        """What was done with ghosts so far, in order."""
        self.value: Tensor | None = None
        """What has taken the place of a ghost. The ghost is not held: it holds this run, and where
        it is a view, torch holds it too, in a circle that Python's collector cannot see."""

    def arrive(self, ghost: "Ghost", value: Tensor) -> None:
        """From here on a ghost stands for this value, and no other ghost may be used."""
        ghost.has_arrived, self.value = True, value

    def resolve(self, ghost: "Ghost") -> Tensor:
        """The real value of a ghost, where there is one."""
        return self.value if ghost.has_arrived and self.value is not None else ghost


class Ghost(Tensor):
    """A tensor without values that depends on the picture.

    It says that it is on the device of the real one, and so is what comes of it. What does not
    depend on the picture (positions, masks of a given size) is computed as always. A ghost whose
    real value has arrived is replaced by that wherever it is used.

    Args:
        shell: Its shape, strides and type, on the meta device.
        device: Where it claims to be.
        passage: The run that it belongs to.
        origin: What made it, for error messages.
    """

    shell: Tensor
    passage: Passage
    origin: str
    has_arrived: bool = False

    @staticmethod
    def __new__(
        cls, shell: Tensor, *, device: torch.device, passage: Passage, origin: str
    ) -> "Ghost":
        """A tensor around no storage."""
        ghost: Ghost = torch.Tensor._make_wrapper_subclass(
            cls, shell.shape, strides=shell.stride(), dtype=shell.dtype, device=device
        )
        ghost.shell, ghost.passage, ghost.origin = shell, passage, origin
        return ghost

    @override
    def __repr__(self) -> str:  # type: ignore[override]  # torch's argument is for its printing
        return f"{self.origin} {tuple(self.shell.shape)}"

    @classmethod
    @override
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Here, above autograd, so that a value which takes a ghost's place keeps its gradient.
        args, kwargs = resolved(args), resolved(kwargs or {})
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    @classmethod
    @override
    def __torch_dispatch__(  # type: ignore[override]  # in torch it is no method
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        ghosts = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Ghost)]
        _refuse(func, args, kwargs or {}, ghosts)
        device = (kwargs or {}).get("device")
        shells, options = tree_map_only(Tensor, _shell, (args, kwargs or {}))
        if device is not None:
            options["device"] = torch.device("meta")
        found = func(*shells, **options)
        return _summoned(found, func.overloadpacket.__name__, ghosts, device)


def resolved(tree: Any) -> Any:
    """A value, or values in containers, with real ones in the place of ghosts that have arrived."""
    if isinstance(tree, Ghost):
        return tree.passage.resolve(tree)
    if type(tree) is tuple or type(tree) is list:  # most are: torch's own way takes its time
        return type(tree)(map(resolved, tree))
    if type(tree) is dict:
        return {key: resolved(value) for key, value in tree.items()}
    if tree is None or isinstance(tree, Tensor | int | float | str):
        return tree
    return tree_map_only(Ghost, lambda ghost: ghost.passage.resolve(ghost), tree)


def _refuse(func: Any, args: Any, kwargs: Any, ghosts: list[Ghost]) -> None:
    """Raise if an operation needs values, or leaves something behind that ghosts cannot."""
    name = func.overloadpacket.__name__
    if ghosts[0].passage.value is not None:
        raise GhostError(f"{ghosts[0]!r} is used behind it as well (in `{name}`)")
    if _is_random(func, args, kwargs):
        raise GhostError(f"`{name}` draws at random before it, outside of the blocks' modules")
    if torch.Tag.data_dependent_output in func.tags:
        raise GhostError(f"what is done depends on the values of {ghosts[0]!r} (in `{name}`)")
    if func._schema.is_mutable:
        named = zip(func._schema.arguments, (*args, *kwargs.values()), strict=False)
        for argument, value in named:
            is_written = argument.alias_info is not None and argument.alias_info.is_write
            if is_written and not all(isinstance(leaf, Ghost) for leaf in tree_leaves(value)):
                raise GhostError(f"`{name}` writes {ghosts[-1]!r} into another tensor")


def _is_random(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether an operation draws: attention has a place for dropout, which may be 0."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return False
    names = [argument.name for argument in func._schema.arguments]
    given = {
        **{a.name: a.default_value for a in func._schema.arguments},
        **dict(zip(names, args, strict=False)),
        **kwargs,
    }
    return given.get("dropout_p") != 0


def _shell(tensor: Tensor) -> Tensor:
    return tensor.shell if isinstance(tensor, Ghost) else tensor.to("meta")


def _summoned(found: Any, name: str, ghosts: list[Ghost], device: Any) -> Any:
    """The ghosts of what was computed on shells; what was changed in place stays itself."""
    known = {id(ghost.shell): ghost for ghost in ghosts}
    passage = ghosts[0].passage
    where = torch.device(device) if device is not None else ghosts[0].device

    def summon(shell: Tensor) -> Ghost:
        passage.steps.append(f"{name} {tuple(shell.shape)}")
        same = known.get(id(shell))
        if same is not None:
            if same.shape != shell.shape:
                raise GhostError(f"`{name}` changes the shape of {same!r} in place")
            return same
        return Ghost(shell, device=where, passage=passage, origin=f"the result of `{name}`")

    return tree_map_only(Tensor, summon, found)

"""Tensors that have a shape and no values, so that a network can run without computing."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only
from typing_extensions import override


class ShapeTensorError(Exception):
    """An operation that shape tensors do not support. The message is a reason: `…: {message}`."""


class ShapeTrace:
    """A run of a network: on shape tensors up to a block, on real values from there on."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        """The operations on shape tensors so far, in order."""
        self.value: Tensor | None = None
        """The real value that replaced a shape tensor. The shape tensor itself is not stored: it
        refers to this run, and if it is a view, torch refers to it: Python's garbage collector does
        not see this cycle."""

    def substitute(self, shape_tensor: "ShapeTensor", value: Tensor) -> None:
        """Replace a shape tensor by its value; from here on, any other shape tensor is an error."""
        shape_tensor.is_substituted, self.value = True, value

    def resolve(self, shape_tensor: "ShapeTensor") -> Tensor:
        """The real value of a shape tensor; the shape tensor itself if it has none."""
        return (
            self.value if shape_tensor.is_substituted and self.value is not None else shape_tensor
        )


class ShapeTensor(Tensor):
    """A tensor without values that depends on the image.

    It reports the device of the real tensor, and so do the results computed from it. Tensors that
    do not depend on the image (positions, masks of a given size) are computed as always. Once a
    shape tensor has been substituted, its real value is used instead.

    Args:
        meta_tensor: Its shape, strides and type, on the meta device.
        device: The device that it reports.
        shape_trace: The run that it belongs to.
        origin: The operation or module that made it, for error messages.
    """

    meta_tensor: Tensor
    shape_trace: ShapeTrace
    origin: str
    is_substituted: bool = False

    @staticmethod
    def __new__(
        cls, meta_tensor: Tensor, *, device: torch.device, shape_trace: ShapeTrace, origin: str
    ) -> "ShapeTensor":
        """A wrapper subclass without storage."""
        shape_tensor: ShapeTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            meta_tensor.shape,
            strides=meta_tensor.stride(),
            dtype=meta_tensor.dtype,
            device=device,
        )
        shape_tensor.meta_tensor, shape_tensor.shape_trace, shape_tensor.origin = (
            meta_tensor,
            shape_trace,
            origin,
        )
        return shape_tensor

    @override
    def __repr__(self) -> str:  # type: ignore[override]  # torch's argument is for its printing
        return f"{self.origin} {tuple(self.meta_tensor.shape)}"

    @classmethod
    @override
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Above autograd, so that the value that replaces a shape tensor keeps its gradient.
        args, kwargs = resolve_all(args), resolve_all(kwargs or {})
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    @classmethod
    @override
    def __torch_dispatch__(  # type: ignore[override]  # in torch it is no method
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        shape_tensors = [
            leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, ShapeTensor)
        ]
        _refuse(func, args, kwargs or {}, shape_tensors)
        device = (kwargs or {}).get("device")
        meta_tensors, options = tree_map_only(Tensor, _meta_tensor, (args, kwargs or {}))
        if device is not None:
            options["device"] = torch.device("meta")
        results = func(*meta_tensors, **options)
        return _wrap_results(results, func.overloadpacket.__name__, shape_tensors, device)


def resolve_all(tree: Any) -> Any:
    """A value, or values in containers, with each substituted shape tensor replaced."""
    if isinstance(tree, ShapeTensor):
        return tree.shape_trace.resolve(tree)
    if type(tree) is tuple or type(tree) is list:  # the common case: `tree_map_only` is slow
        return type(tree)(map(resolve_all, tree))
    if type(tree) is dict:
        return {key: resolve_all(value) for key, value in tree.items()}
    if tree is None or isinstance(tree, Tensor | int | float | str):
        return tree
    return tree_map_only(
        ShapeTensor, lambda shape_tensor: shape_tensor.shape_trace.resolve(shape_tensor), tree
    )


def _refuse(func: Any, args: Any, kwargs: Any, shape_tensors: list[ShapeTensor]) -> None:
    """Raise if an operation needs values, draws at random, or writes into a real tensor."""
    name = func.overloadpacket.__name__
    if shape_tensors[0].shape_trace.value is not None:
        raise ShapeTensorError(f"{shape_tensors[0]!r} is used behind it as well (in `{name}`)")
    if _is_random(func, args, kwargs):
        raise ShapeTensorError(
            f"`{name}` draws at random before it, outside of the blocks' modules"
        )
    if torch.Tag.data_dependent_output in func.tags:
        raise ShapeTensorError(
            f"what is done depends on the values of {shape_tensors[0]!r} (in `{name}`)"
        )
    if func._schema.is_mutable:
        named = zip(func._schema.arguments, (*args, *kwargs.values()), strict=False)
        for argument, value in named:
            is_written = argument.alias_info is not None and argument.alias_info.is_write
            if is_written and not all(isinstance(leaf, ShapeTensor) for leaf in tree_leaves(value)):
                raise ShapeTensorError(f"`{name}` writes {shape_tensors[-1]!r} into another tensor")


def _is_random(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether an operation draws at random: attention does so unless its dropout is 0."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return False
    names = [argument.name for argument in func._schema.arguments]
    arguments = {
        **{a.name: a.default_value for a in func._schema.arguments},
        **dict(zip(names, args, strict=False)),
        **kwargs,
    }
    return arguments.get("dropout_p") != 0


def _meta_tensor(tensor: Tensor) -> Tensor:
    return tensor.meta_tensor if isinstance(tensor, ShapeTensor) else tensor.to("meta")


def _wrap_results(results: Any, name: str, shape_tensors: list[ShapeTensor], device: Any) -> Any:
    """The results of an operation as shape tensors; one changed in place stays the same object."""
    known = {id(shape_tensor.meta_tensor): shape_tensor for shape_tensor in shape_tensors}
    shape_trace = shape_tensors[0].shape_trace
    result_device = torch.device(device) if device is not None else shape_tensors[0].device

    def wrap(meta_tensor: Tensor) -> ShapeTensor:
        shape_trace.steps.append(f"{name} {tuple(meta_tensor.shape)}")
        existing = known.get(id(meta_tensor))
        if existing is not None:
            if existing.shape != meta_tensor.shape:
                raise ShapeTensorError(f"`{name}` changes the shape of {existing!r} in place")
            return existing
        return ShapeTensor(
            meta_tensor,
            device=result_device,
            shape_trace=shape_trace,
            origin=f"the result of `{name}`",
        )

    return tree_map_only(Tensor, wrap, results)

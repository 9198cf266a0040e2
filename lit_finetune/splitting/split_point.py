"""The start of a block in a network's forward, found by running it on shape tensors."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from inspect import unwrap
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from lit_finetune._errors import one_of
from lit_finetune.blocks.block import Block
from lit_finetune.modules.compiled import force_eager
from lit_finetune.splitting.shape_tensor import ShapeTensor, ShapeTensorError, ShapeTrace

PLAIN_TYPES = (type(None), bool, int, float, str)
"""The types besides tensors in a module's output that may be recorded and returned again."""


class SplitError(ValueError):
    """A network cannot be split at a block; the message says why."""


class BlockReached(BaseException):
    """Raised before a block runs, with its arguments, to end the forward there."""

    def __init__(self, path: str, leaves: list[Any]) -> None:
        super().__init__(path)
        self.path = path
        self.leaves = leaves


@dataclass(frozen=True, slots=True)
class SplitPoint:
    """The modules before a block, and those from the block on."""

    network: str
    block: str
    before: tuple[str, ...]
    after: tuple[str, ...]
    parameters: frozenset[str]
    """The parameters of the blocks before."""

    def error(self, reason: object) -> SplitError:
        """The error with the reason why the network cannot be split here."""
        return SplitError(f"{self.network} cannot be split at `{self.block}`: {reason}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixTrace:
    """The forward of images of one shape up to a block; its tensors are on the meta device."""

    image: Tensor
    first_module: str
    """The first module of the block that is called."""
    argument_index: int
    """The index of the block's input among the module's arguments."""
    block_input: Tensor
    outputs: Mapping[str, Sequence[Any]]
    """The outputs of each module before the block, call by call; None if it has to run."""
    steps: tuple[str, ...]
    """The operations between these modules."""


def make_split_point(network: nn.Module, blocks: Sequence[Block], name: str) -> SplitPoint:
    """The split point before the block of this name.

    Raises:
        ValueError: There is no such block.
    """
    names = [block.name for block in blocks]
    first = names.index(one_of(name, names, "block"))
    before, after = blocks[:first], blocks[first:]
    return SplitPoint(
        type(network).__name__,
        name,
        tuple(path for block in before for path in block.modules),
        tuple(path for block in after for path in block.modules),
        frozenset(path for block in before for path in block.parameters),
    )


def trace_prefix(
    network: nn.Module, point: SplitPoint, image: Tensor, device: torch.device
) -> PrefixTrace:
    """Run a network on shape tensors up to a block, and record its forward.

    Args:
        network: It computes no values; its modes, attributes and buffers are restored.
        point: The start of the block.
        image: The shape and type of the input, on the meta device.
        device: The network's device.

    Raises:
        SplitError: The input of the block is not one tensor, or it depends on more than the image
            and the blocks before: a later parameter, random numbers, training or evaluation.
    """
    with torch.inference_mode(False), torch.enable_grad(), _preserve_attributes(network):
        _mark_parameters(network, point)
        in_training, in_evaluation = (
            _run_on_shapes(network, point, image, device, training=training)
            for training in (True, False)
        )
    if (
        in_training.steps != in_evaluation.steps
        or in_training.first_module != in_evaluation.first_module
    ):
        raise point.error("what is done before it differs between training and evaluation")
    return in_evaluation


def single_shape_tensor(point: SplitPoint, leaves: Sequence[Any]) -> ShapeTensor:
    """The only shape tensor among a block's arguments."""
    shape_tensors = {id(leaf): leaf for leaf in leaves if isinstance(leaf, ShapeTensor)}
    if not shape_tensors:
        raise point.error("nothing of the picture enters it")
    if len(shape_tensors) > 1:
        raise point.error(
            f"several tensors enter it: {', '.join(map(repr, shape_tensors.values()))}"
        )
    return next(iter(shape_tensors.values()))


@contextmanager
def stop_at(network: nn.Module, paths: Iterator[str] | Sequence[str]) -> Iterator[None]:
    """Raise `BlockReached` before the first of these modules that is called, within a context."""
    with ExitStack() as handles:
        for path in paths:

            def stop(_: nn.Module, args: Any, kwargs: Any, path: str = path) -> None:
                raise BlockReached(path, tree_leaves((args, kwargs)))

            module = network.get_submodule(path)
            hook = module.register_forward_pre_hook(stop, prepend=True, with_kwargs=True)
            handles.callback(hook.remove)
        yield


def _run_on_shapes(
    network: nn.Module, point: SplitPoint, image: Tensor, device: torch.device, *, training: bool
) -> PrefixTrace:
    _set_modes(network, point, training=training)
    shape_trace = ShapeTrace()
    outputs: dict[str, list[Any]] = defaultdict(list)
    shape_tensor = ShapeTensor(image, device=device, shape_trace=shape_trace, origin="the picture")
    states = _random_states(device)
    try:
        with (
            force_eager(),
            stop_at(network, _entry_modules(network, point)),
            _record_outputs(network, point, outputs),
        ):
            network(shape_tensor)
    except BlockReached as reached:
        block_input = single_shape_tensor(point, reached.leaves)
        argument_index = next(i for i, leaf in enumerate(reached.leaves) if leaf is block_input)
        first_module = reached.path
    except ShapeTensorError as error:
        raise point.error(error) from error
    except SplitError:
        raise
    except Exception as error:  # any error of a network on a tensor without values
        raise point.error(
            f"its forward fails on a tensor without values, with {error!r}"
        ) from error
    else:
        raise point.error("its forward never calls a module of that block or a later one")
    if not all(map(torch.equal, states, _random_states(device))):
        raise point.error("something is drawn at random before it, outside of a dropout module")
    if stored := _stored_shape_tensor(network, point):
        raise point.error(f"`{stored}` is kept by a module before it, and may be used behind it")
    if block_input.requires_grad:
        raise point.error("a parameter of that block or a later one is used before it")
    return PrefixTrace(
        image=image,
        first_module=first_module,
        argument_index=argument_index,
        block_input=block_input.meta_tensor,
        outputs=dict(outputs),
        steps=tuple(shape_trace.steps),
    )


def _entry_modules(network: nn.Module, point: SplitPoint) -> Iterator[str]:
    """The modules from the block on with parameters, buffers, or a dependence on the mode."""
    before = {id(m) for path in point.before for m in network.get_submodule(path).modules()}
    for root in point.after:
        for name, module in network.get_submodule(root).named_modules():
            has_state = any(True for _ in module.parameters()) or any(
                True for _ in module.buffers()
            )
            if id(module) not in before and (has_state or depends_on_mode(module)):
                yield f"{root}.{name}" if name else root


def depends_on_mode(module: nn.Module, *, inner: bool = True) -> bool:
    """Whether a module's forward may depend on its mode, as dropout's does.

    >>> modules = nn.ReLU(), nn.Dropout(), nn.Sequential(nn.Dropout())
    >>> [depends_on_mode(module) for module in modules]
    [False, True, True]

    Args:
        module: Its class's `forward` is searched for `training`.
        inner: Whether to search its submodules, too.
    """
    modules = module.modules() if inner else [module]
    forwards = [unwrap(type(each).forward) for each in modules]
    codes = [getattr(forward, "__code__", None) for forward in forwards]
    return any(code is None or "training" in code.co_names for code in codes)


@contextmanager
def _record_outputs(
    network: nn.Module, point: SplitPoint, outputs: dict[str, list[Any]]
) -> Iterator[None]:
    """Record the outputs of each module, within a context."""
    with ExitStack() as handles:
        for path in (*point.before, *point.after):

            def trace(_: nn.Module, args: Any, output: Any, path: str = path) -> None:
                leaves = tree_leaves(output)
                shape_tensors = [isinstance(leaf, ShapeTensor) for leaf in leaves]
                is_known = all(isinstance(leaf, (ShapeTensor, *PLAIN_TYPES)) for leaf in leaves)
                meta_tensors = tree_map_only(
                    ShapeTensor, lambda shape_tensor: shape_tensor.meta_tensor, output
                )
                outputs[path].append(meta_tensors if is_known and any(shape_tensors) else None)

            hook = network.get_submodule(path).register_forward_hook(trace)
            handles.callback(hook.remove)
        yield


def _random_states(device: torch.device) -> list[Tensor]:
    on_cuda = device.type == "cuda"
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if on_cuda else [])]


def _stored_shape_tensor(network: nn.Module, point: SplitPoint) -> str | None:
    """The name of a tensor of this run that a module before the block has stored, if any."""
    for root in point.before:
        for name, module in network.get_submodule(root).named_modules():
            for attribute, value in [*vars(module).items(), *module._buffers.items()]:
                if any(isinstance(leaf, ShapeTensor) for leaf in tree_leaves(value)):
                    return ".".join(filter(None, [root, name, attribute]))
    return None


def _set_modes(network: nn.Module, point: SplitPoint, *, training: bool) -> None:
    """Set the mode of all modules; those before the block are in eval mode."""
    for module in network.modules():
        module.training = training
    for path in point.before:
        for module in network.get_submodule(path).modules():
            module.training = False


def _mark_parameters(network: nn.Module, point: SplitPoint) -> None:
    """Require a gradient of the parameters from the block on, and of no others."""
    for name, parameter in network.named_parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(name not in point.parameters)


@contextmanager
def _preserve_attributes(network: nn.Module) -> Iterator[None]:
    namespaces = [namespace for m in network.modules() for namespace in (vars(m), m._buffers)]
    contents = [(namespace, dict(namespace)) for namespace in namespaces]
    gradient_flags = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    try:
        yield
    finally:
        for current, saved in contents:
            current.clear()
            current.update(saved)
        for parameter, requires_grad in gradient_flags:
            parameter.requires_grad_(requires_grad)

"""Where a block begins in a network's forward: found by running it on shape tensors."""

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
from lit_finetune.modules.compiled import eagerly
from lit_finetune.splitting.shape_tensor import ShapeTensor, ShapeTensorError, ShapeTrace

PLAIN = (type(None), bool, int, float, str)
"""What a module may give beside tensors and be taken at its word."""


class SplitError(ValueError):
    """A network cannot be split at a block; the message says why."""


class Reached(BaseException):
    """A block is about to run, with these arguments. It ends a forward that goes no further."""

    def __init__(self, path: str, leaves: list[Any]) -> None:
        super().__init__(path)
        self.path = path
        self.leaves = leaves


@dataclass(frozen=True, slots=True)
class Cut:
    """The modules before a block, and those from it on."""

    network: str
    block: str
    before: tuple[str, ...]
    behind: tuple[str, ...]
    parameters: frozenset[str]
    """Those of the blocks before."""

    def refusal(self, reason: object) -> SplitError:
        """The error that says why it cannot be."""
        return SplitError(f"{self.network} cannot be split at `{self.block}`: {reason}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """How a forward gets to a block with pictures of one shape; the tensors have no values."""

    picture: Tensor
    entry: str
    """The module that the block begins with."""
    slot: int
    """Which of its arguments it is that enters the block."""
    entering: Tensor
    outputs: Mapping[str, Sequence[Any]]
    """What each module before gives at each of its calls; None where it has to run."""
    steps: tuple[str, ...]
    """What is done between these modules."""


def cut_at(network: nn.Module, blocks: Sequence[Block], name: str) -> Cut:
    """Cut before the block of this name.

    Raises:
        ValueError: There is no such block.
    """
    names = [block.name for block in blocks]
    first = names.index(one_of(name, names, "block"))
    before, behind = blocks[:first], blocks[first:]
    return Cut(
        type(network).__name__,
        name,
        tuple(path for block in before for path in block.modules),
        tuple(path for block in behind for path in block.modules),
        frozenset(path for block in before for path in block.parameters),
    )


def record(network: nn.Module, cut: Cut, picture: Tensor, device: torch.device) -> Record:
    """Run a network on shape tensors up to a block, and note how it gets there.

    Args:
        network: It computes nothing, and is afterwards as it was.
        cut: Where the block begins.
        picture: The shape and type of the input, on the meta device.
        device: Where the network is.

    Raises:
        SplitError: What enters the block is not one tensor, or it hangs on more than the picture
            and the blocks before: on a later parameter, on chance, on training or evaluation.
    """
    with torch.inference_mode(False), torch.enable_grad(), _left_as_it_was(network):
        _mark_parameters(network, cut)
        in_training, in_evaluation = (
            _run_on_shapes(network, cut, picture, device, training=training)
            for training in (True, False)
        )
    if in_training.steps != in_evaluation.steps or in_training.entry != in_evaluation.entry:
        raise cut.refusal("what is done before it differs between training and evaluation")
    return in_evaluation


def the_shape_tensor(cut: Cut, leaves: Sequence[Any]) -> ShapeTensor:
    """The only shape tensor among a block's arguments."""
    shape_tensors = {id(leaf): leaf for leaf in leaves if isinstance(leaf, ShapeTensor)}
    if not shape_tensors:
        raise cut.refusal("nothing of the picture enters it")
    if len(shape_tensors) > 1:
        raise cut.refusal(
            f"several tensors enter it: {', '.join(map(repr, shape_tensors.values()))}"
        )
    return next(iter(shape_tensors.values()))


@contextmanager
def stopping_at(network: nn.Module, paths: Iterator[str] | Sequence[str]) -> Iterator[None]:
    """Let the first of these modules that is called raise `Reached`."""
    with ExitStack() as handles:
        for path in paths:

            def stop(_: nn.Module, args: Any, kwargs: Any, path: str = path) -> None:
                raise Reached(path, tree_leaves((args, kwargs)))

            module = network.get_submodule(path)
            hook = module.register_forward_pre_hook(stop, prepend=True, with_kwargs=True)
            handles.callback(hook.remove)
        yield


def _run_on_shapes(
    network: nn.Module, cut: Cut, picture: Tensor, device: torch.device, *, training: bool
) -> Record:
    _set_modes(network, cut, training=training)
    shape_trace = ShapeTrace()
    outputs: dict[str, list[Any]] = defaultdict(list)
    shape_tensor = ShapeTensor(
        picture, device=device, shape_trace=shape_trace, origin="the picture"
    )
    states = _random_states(device)
    try:
        with (
            eagerly(),
            stopping_at(network, _entries(network, cut)),
            _noting(network, cut, outputs),
        ):
            network(shape_tensor)
    except Reached as reached:
        entering = the_shape_tensor(cut, reached.leaves)
        slot = next(i for i, leaf in enumerate(reached.leaves) if leaf is entering)
        entry = reached.path
    except ShapeTensorError as error:
        raise cut.refusal(error) from error
    except SplitError:
        raise
    except Exception as error:  # whatever a network does with a tensor that has no values
        raise cut.refusal(
            f"its forward fails on a tensor without values, with {error!r}"
        ) from error
    else:
        raise cut.refusal("its forward never calls a module of that block or a later one")
    if not all(map(torch.equal, states, _random_states(device))):
        raise cut.refusal("something is drawn at random before it, outside of a dropout module")
    if kept := _kept(network, cut):
        raise cut.refusal(f"`{kept}` is kept by a module before it, and may be used behind it")
    if entering.requires_grad:
        raise cut.refusal("a parameter of that block or a later one is used before it")
    return Record(
        picture=picture,
        entry=entry,
        slot=slot,
        entering=entering.meta_tensor,
        outputs=dict(outputs),
        steps=tuple(shape_trace.steps),
    )


def _entries(network: nn.Module, cut: Cut) -> Iterator[str]:
    """The modules behind the cut that do more than a plain function of their input."""
    before = {id(m) for path in cut.before for m in network.get_submodule(path).modules()}
    for root in cut.behind:
        for name, module in network.get_submodule(root).named_modules():
            holds = any(True for _ in module.parameters()) or any(True for _ in module.buffers())
            if id(module) not in before and (holds or follows_mode(module)):
                yield f"{root}.{name}" if name else root


def follows_mode(module: nn.Module, *, inner: bool = True) -> bool:
    """Whether a module may do one thing in training and another in evaluation, as dropout does.

    >>> [follows_mode(module) for module in (nn.ReLU(), nn.Dropout(), nn.Sequential(nn.Dropout()))]
    [False, True, True]

    Args:
        module: Its forward is looked at.
        inner: Whether it does so too if a module inside it does.
    """
    modules = module.modules() if inner else [module]
    forwards = [unwrap(type(each).forward) for each in modules]
    codes = [getattr(forward, "__code__", None) for forward in forwards]
    return any(code is None or "training" in code.co_names for code in codes)


@contextmanager
def _noting(network: nn.Module, cut: Cut, outputs: dict[str, list[Any]]) -> Iterator[None]:
    """Note what each module gives before the cut is reached."""
    with ExitStack() as handles:
        for path in (*cut.before, *cut.behind):

            def note(_: nn.Module, args: Any, output: Any, path: str = path) -> None:
                leaves = tree_leaves(output)
                shape_tensors = [isinstance(leaf, ShapeTensor) for leaf in leaves]
                is_known = all(isinstance(leaf, (ShapeTensor, *PLAIN)) for leaf in leaves)
                meta_tensors = tree_map_only(
                    ShapeTensor, lambda shape_tensor: shape_tensor.meta_tensor, output
                )
                outputs[path].append(meta_tensors if is_known and any(shape_tensors) else None)

            hook = network.get_submodule(path).register_forward_hook(note)
            handles.callback(hook.remove)
        yield


def _random_states(device: torch.device) -> list[Tensor]:
    on_cuda = device.type == "cuda"
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if on_cuda else [])]


def _kept(network: nn.Module, cut: Cut) -> str | None:
    """The name of a tensor that a module before the cut has put by: it would be there, but old."""
    for root in cut.before:
        for name, module in network.get_submodule(root).named_modules():
            for attribute, value in [*vars(module).items(), *module._buffers.items()]:
                if any(isinstance(leaf, ShapeTensor) for leaf in tree_leaves(value)):
                    return ".".join(filter(None, [root, name, attribute]))
    return None


def _set_modes(network: nn.Module, cut: Cut, *, training: bool) -> None:
    """Modules before the cut rest, the others follow."""
    for module in network.modules():
        module.training = training
    for path in cut.before:
        for module in network.get_submodule(path).modules():
            module.training = False


def _mark_parameters(network: nn.Module, cut: Cut) -> None:
    """Let what hangs on a parameter behind the cut require a gradient, and nothing else."""
    for name, parameter in network.named_parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(name not in cut.parameters)


@contextmanager
def _left_as_it_was(network: nn.Module) -> Iterator[None]:
    holders = [held for m in network.modules() for held in (vars(m), m._buffers)]
    contents = [(held, dict(held)) for held in holders]
    needs = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    try:
        yield
    finally:
        for now, then in contents:
            now.clear()
            now.update(then)
        for parameter, requires_grad in needs:
            parameter.requires_grad_(requires_grad)

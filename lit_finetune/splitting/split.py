"""Run a network up to one of its blocks, and from there on.

Both halves are the network's own forward, whatever it does. The first is stopped at the start of
the block. The second runs on shape tensors, which have no values: the modules before the block
return the shapes recorded for them, and at the start of the block the real values replace its
input. If anything else that depends on the image is used from there on, it is a shape tensor, and
the network cannot be split.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from lit_finetune.blocks.block import list_blocks
from lit_finetune.modules.compiled import force_eager
from lit_finetune.modules.outputs import logits_of
from lit_finetune.splitting.shape_tensor import (
    ShapeTensor,
    ShapeTensorError,
    ShapeTrace,
    resolve_all,
)
from lit_finetune.splitting.split_point import (
    BlockReached,
    PrefixTrace,
    SplitPoint,
    make_split_point,
    single_shape_tensor,
    stop_at,
    trace_prefix,
)
from lit_finetune.splitting.split_point import SplitError as SplitError


class PrefixOutput(NamedTuple):
    """The input of a block, in place of images; it has their length and shape.

    >>> x = PrefixOutput(torch.ones(4, 512), "layer4", (3, 224, 224))
    >>> len(x), x.shape, x.size(0)
    (4, (4, 3, 224, 224), 4)
    """

    values: Tensor
    block: str
    image_shape: tuple[int, ...]
    """Channels, height and width of the images."""

    def __len__(self) -> int:
        """The number of images."""
        return len(self.values)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the images, (N, C, H, W)."""
        return (len(self.values), *self.image_shape)

    def size(self, dim: int) -> int:
        """One dimension of the images' shape."""
        return self.shape[dim]


def forward_prefix(
    network: nn.Module, x: Tensor, upto: str, *, head_name: str | None = None
) -> Tensor:
    """The input of a block in a network's forward of `x`: runs the blocks before it.

    Modules run in their current mode. Modules without parameters between blocks (pooling,
    flattening) belong to the first half, but dropout to the second: with `upto="head"`, the result
    is the input of the head and its dropout.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 2)).eval()
    >>> x = torch.ones(1, 4)
    >>> h = forward_prefix(net, x, "head")
    >>> torch.equal(h, net[0](x).relu()), torch.equal(forward_from(net, h, "head"), net(x))
    (True, True)

    Args:
        network: Any network.
        x: Its input.
        upto: The name of a block.
        head_name: As in `list_blocks`.

    Raises:
        SplitError: The network cannot be split there; the message says why.
        ValueError: There is no such block.
    """
    split = _split(network, upto, head_name)
    trace = split.trace_of(network, _to_meta(x), x.device)
    return _run_until_block(network, trace, lambda: network(x))


def forward_from(
    network: nn.Module,
    h: Tensor,
    upto: str,
    *,
    head_name: str | None = None,
    image_shape: Sequence[int] | None = None,
) -> Tensor:
    """A network's logits from the input of a block, as returned by `forward_prefix`.

    Equal to the network's own forward to the last bit, also in training mode; gradients reach the
    block's parameters and `h`.

    Args:
        network: Any network.
        h: The input of the block.
        upto: The name of a block.
        head_name: As in `list_blocks`.
        image_shape: Channels, height and width of the images that `h` was computed from; by
            default those of an earlier `forward_prefix` of this network.

    Raises:
        SplitError: The network cannot be split there, or `h` is of the wrong shape.
        ValueError: There is no such block.
    """
    split = _split(network, upto, head_name)
    trace = split.find(network, h, image_shape)
    return logits_of(_run_from_block(network, split.point, trace, h))


def forward_between(
    network: nn.Module,
    h: Tensor,
    start: str,
    upto: str,
    *,
    head_name: str | None = None,
    image_shape: Sequence[int] | None = None,
) -> Tensor:
    """The input of the block `upto`, from the input of an earlier block `start`.

    The arguments are those of `forward_from`.

    Raises:
        SplitError: The network cannot be split at one of the two.
        ValueError: There is no such block.
    """
    split = _split(network, start, head_name)
    trace = split.find(network, h, image_shape)
    end = _split(network, upto, head_name).trace_of(network, trace.image, h.device)
    return _run_until_block(network, end, lambda: _run_from_block(network, split.point, trace, h))


class _Split:
    """A split point of a network, with a trace for each shape of images."""

    def __init__(self, point: SplitPoint) -> None:
        self.point = point
        self._traces: dict[Any, PrefixTrace] = {}

    def is_valid_for(self, network: nn.Module) -> bool:
        """Whether the network still has the modules of the split point and the traces."""
        entries = (trace.first_module for trace in self._traces.values())
        try:
            for path in (*self.point.before, *self.point.after, *entries):
                network.get_submodule(path)
        except AttributeError:
            return False
        return True

    def trace_of(self, network: nn.Module, image: Tensor, device: torch.device) -> PrefixTrace:
        """The trace of the blocks before, for images of this shape."""
        key = (image.shape, image.stride(), image.dtype, device)
        trace = self._traces.pop(key, None) or trace_prefix(network, self.point, image, device)
        self._traces[key] = trace  # the latest is the last
        return trace

    def find(self, network: nn.Module, h: Tensor, image_shape: Sequence[int] | None) -> PrefixTrace:
        """The trace of images whose forward gave the block an input like `h`."""
        traces = reversed(self._traces.values())
        candidates = [trace for trace in traces if trace.block_input.shape[1:] == h.shape[1:]]
        same_size = [trace for trace in candidates if len(trace.block_input) == len(h)]
        if same_size and image_shape is None:
            return same_size[0]
        if candidates and image_shape is None:
            image_shape = candidates[0].image.shape[1:]
        if image_shape is None:
            raise SplitError(
                f"`{self.point.block}` of {self.point.network} has had no input of the shape"
                f" {tuple(h.shape)} yet: run `forward_prefix` on such pictures, or give their"
                " `image_shape`."
            )
        image = torch.empty(len(h), *image_shape, device="meta")
        return self.trace_of(network, image, h.device)


_SPLITS: WeakKeyDictionary[nn.Module, dict[tuple[str, str | None], _Split]] = WeakKeyDictionary()


def _split(network: nn.Module, upto: str, head_name: str | None) -> _Split:
    splits = _SPLITS.setdefault(network, {})
    split = splits.get((upto, head_name))
    if split is None or not split.is_valid_for(network):
        split = _Split(make_split_point(network, list_blocks(network, head_name), upto))
        splits[upto, head_name] = split
    return split


def _to_meta(x: Tensor) -> Tensor:
    """The shape and type of a tensor, without its values."""
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")


def _run_until_block(network: nn.Module, trace: PrefixTrace, run: Callable[[], Any]) -> Tensor:
    """The input of a trace's block in a run of the network, which ends there."""
    try:
        with force_eager(), stop_at(network, [trace.first_module]):
            run()
    except BlockReached as reached:
        block_input = resolve_all(reached.leaves[trace.argument_index])
        assert isinstance(block_input, Tensor), "it was one when traced"
        return block_input
    raise AssertionError(f"`{trace.first_module}` was called when traced")


def _run_from_block(network: nn.Module, point: SplitPoint, trace: PrefixTrace, h: Tensor) -> Any:
    """The network's output, with `h` as the input of a trace's block."""
    shape_trace = ShapeTrace()

    def substitute_input(_: nn.Module, args: Any, kwargs: Any) -> Any:
        if shape_trace.value is None:
            shape_tensor = single_shape_tensor(point, tree_leaves((args, kwargs)))
            if shape_tensor.shape != h.shape:
                expected = tuple(shape_tensor.shape)
                raise point.error(f"{expected} enters it, but this has the shape {tuple(h.shape)}")
            shape_trace.substitute(shape_tensor, _copy_strided(h))
        return resolve_all((args, kwargs))

    first_module = network.get_submodule(trace.first_module)
    image = ShapeTensor(trace.image, device=h.device, shape_trace=shape_trace, origin="the picture")
    with ExitStack() as stack:
        hook = first_module.register_forward_pre_hook(
            substitute_input, prepend=True, with_kwargs=True
        )
        stack.callback(hook.remove)
        for path, outputs in trace.outputs.items():
            stack.enter_context(_replay_outputs(network.get_submodule(path), path, outputs, image))
        stack.enter_context(force_eager())
        try:
            output = network(image)
        except ShapeTensorError as error:
            raise point.error(error) from error
    if any(isinstance(leaf, ShapeTensor) for leaf in [logits_of(output)]):
        raise point.error("the network's output does not come of what enters it")
    return output


@contextmanager
def _replay_outputs(
    module: nn.Module, path: str, outputs: Sequence[Any], image: ShapeTensor
) -> Iterator[None]:
    """Let a module return shape tensors of its recorded outputs' shapes, without running.

    Once the block's input has been substituted, it runs again: it may be used behind the block.
    """
    shape_trace, device, calls = image.shape_trace, image.device, iter(outputs)
    own_forward = vars(module).get("forward")
    forward = module.forward

    def replay(*args: Any, **kwargs: Any) -> Any:
        meta_tensors = next(calls, None) if shape_trace.value is None else None
        if meta_tensors is None:
            return forward(*args, **kwargs)

        def wrap(meta_tensor: Tensor) -> ShapeTensor:
            return ShapeTensor(
                meta_tensor,
                device=device,
                shape_trace=shape_trace,
                origin=f"the output of `{path}`",
            )

        is_one = isinstance(meta_tensors, Tensor)
        return wrap(meta_tensors) if is_one else tree_map_only(Tensor, wrap, meta_tensors)

    vars(module)["forward"] = replay
    try:
        yield
    finally:
        del vars(module)["forward"]
        if own_forward is not None:
            vars(module)["forward"] = own_forward


def _copy_strided(h: Tensor) -> Tensor:
    """A copy with the same strides, since operations may work in place."""
    copy = h.clone()
    if copy.stride() == h.stride():
        return copy
    if 0 in h.stride():  # nothing can work in place on that
        return h
    return h.new_empty_strided(h.shape, h.stride()).copy_(h)

"""Run a network up to one of its blocks, and from there on.

Both halves are the network's own forward, whatever it does. The first is stopped where the block
begins. The second runs on shape tensors, which have no values, is told what shape each module of
the blocks before gives, and goes on with the real values where the block begins. Should anything
else of the picture be needed from there on, it is a shape tensor, and the network cannot be split.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from lit_finetune.blocks.block import list_blocks
from lit_finetune.modules.compiled import eagerly
from lit_finetune.modules.outputs import logits_of
from lit_finetune.splitting.shape_tensor import ShapeTensor, ShapeTensorError, ShapeTrace, resolved
from lit_finetune.splitting.split_point import (
    Cut,
    Reached,
    Record,
    cut_at,
    record,
    stopping_at,
    the_shape_tensor,
)
from lit_finetune.splitting.split_point import SplitError as SplitError


class PrefixOutput(NamedTuple):
    """What enters a block, in the place of pictures."""

    values: Tensor
    block: str
    image_shape: tuple[int, ...]
    """Channels, height and width of the pictures."""


def forward_prefix(
    network: nn.Module, x: Tensor, upto: str, *, head_name: str | None = None
) -> Tensor:
    """What enters a block when a network sees `x`: the blocks before it have run.

    Modules run in the mode they are in. What stands between blocks and has no parameters (pooling,
    flattening) belongs to the first half, but dropout to the second: `upto="head"` gives what the
    head, with its dropout, is given.

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
        SplitError: The network cannot be split there; it says why.
        ValueError: There is no such block.
    """
    split = _split(network, upto, head_name)
    note = split.note(network, _spec(x), x.device)
    return _stopped(network, note, lambda: network(x))


def forward_from(
    network: nn.Module,
    h: Tensor,
    upto: str,
    *,
    head_name: str | None = None,
    image_shape: Sequence[int] | None = None,
) -> Tensor:
    """A network's logits, from what enters a block: `forward_prefix` gives it.

    Equal to the network's own forward to the last bit, also when it trains; gradients go back to
    the block's parameters and to `h`.

    Args:
        network: Any network.
        h: What enters the block.
        upto: The name of a block.
        head_name: As in `list_blocks`.
        image_shape: Channels, height and width of the pictures that `h` comes from; known where
            `forward_prefix` has run on this network.

    Raises:
        SplitError: The network cannot be split there, or `h` is of the wrong shape.
        ValueError: There is no such block.
    """
    split = _split(network, upto, head_name)
    note = split.find(network, h, image_shape)
    return logits_of(_resumed(network, split.cut, note, h))


def forward_between(
    network: nn.Module,
    h: Tensor,
    start: str,
    upto: str,
    *,
    head_name: str | None = None,
    image_shape: Sequence[int] | None = None,
) -> Tensor:
    """What enters the block `upto`, from what enters a block `start` before it.

    The arguments are those of `forward_from`.

    Raises:
        SplitError: The network cannot be split at one of the two.
        ValueError: There is no such block.
    """
    split = _split(network, start, head_name)
    note = split.find(network, h, image_shape)
    goal = _split(network, upto, head_name).note(network, note.picture, h.device)
    return _stopped(network, goal, lambda: _resumed(network, split.cut, note, h))


class _Split:
    """What is known of the ways to one block of a network."""

    def __init__(self, cut: Cut) -> None:
        self.cut = cut
        self._records: dict[Any, Record] = {}

    def is_of(self, network: nn.Module) -> bool:
        """Whether the network still has the modules that were noted."""
        entries = (note.entry for note in self._records.values())
        try:
            for path in (*self.cut.before, *self.cut.behind, *entries):
                network.get_submodule(path)
        except AttributeError:
            return False
        return True

    def note(self, network: nn.Module, picture: Tensor, device: torch.device) -> Record:
        """How pictures of this shape get to the block."""
        key = (picture.shape, picture.stride(), picture.dtype, device)
        note = self._records.pop(key, None) or record(network, self.cut, picture, device)
        self._records[key] = note  # the latest is the last
        return note

    def find(self, network: nn.Module, h: Tensor, image_shape: Sequence[int] | None) -> Record:
        """How pictures got to the block of which this has entered it."""
        notes = reversed(self._records.values())
        alike = [note for note in notes if note.entering.shape[1:] == h.shape[1:]]
        same = [note for note in alike if len(note.entering) == len(h)]
        if same and image_shape is None:
            return same[0]
        if alike and image_shape is None:
            image_shape = alike[0].picture.shape[1:]
        if image_shape is None:
            raise SplitError(
                f"Nothing of the shape {tuple(h.shape)} has entered `{self.cut.block}` of "
                f"{self.cut.network} yet: run `forward_prefix` on such pictures, or say their "
                "`image_shape`."
            )
        picture = torch.empty(len(h), *image_shape, device="meta")
        return self.note(network, picture, h.device)


_SPLITS: WeakKeyDictionary[nn.Module, dict[tuple[str, str | None], _Split]] = WeakKeyDictionary()


def _split(network: nn.Module, upto: str, head_name: str | None) -> _Split:
    known = _SPLITS.setdefault(network, {})
    split = known.get((upto, head_name))
    if split is None or not split.is_of(network):
        split = _Split(cut_at(network, list_blocks(network, head_name), upto))
        known[upto, head_name] = split
    return split


def _spec(x: Tensor) -> Tensor:
    """The shape and type of a tensor, without its values."""
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")


def _stopped(network: nn.Module, note: Record, run: Callable[[], Any]) -> Tensor:
    """What enters the block of a record in a run of the network, which ends there."""
    try:
        with eagerly(), stopping_at(network, [note.entry]):
            run()
    except Reached as reached:
        entering = resolved(reached.leaves[note.slot])
        assert isinstance(entering, Tensor), "it was one when the record was made"
        return entering
    raise AssertionError(f"`{note.entry}` was called when the record was made")


def _resumed(network: nn.Module, cut: Cut, note: Record, h: Tensor) -> Any:
    """The network's output, with `h` entering the block of a record."""
    shape_trace = ShapeTrace()

    def enter(_: nn.Module, args: Any, kwargs: Any) -> Any:
        if shape_trace.value is None:
            shape_tensor = the_shape_tensor(cut, tree_leaves((args, kwargs)))
            if shape_tensor.shape != h.shape:
                expected = tuple(shape_tensor.shape)
                raise cut.refusal(f"{expected} enters it, but this has the shape {tuple(h.shape)}")
            shape_trace.substitute(shape_tensor, _copy(h))
        return resolved((args, kwargs))

    entry = network.get_submodule(note.entry)
    picture = ShapeTensor(
        note.picture, device=h.device, shape_trace=shape_trace, origin="the picture"
    )
    with ExitStack() as undo:
        hook = entry.register_forward_pre_hook(enter, prepend=True, with_kwargs=True)
        undo.callback(hook.remove)
        for path, outputs in note.outputs.items():
            undo.enter_context(_replaying(network.get_submodule(path), path, outputs, picture))
        undo.enter_context(eagerly())
        try:
            output = network(picture)
        except ShapeTensorError as error:
            raise cut.refusal(error) from error
    if any(isinstance(leaf, ShapeTensor) for leaf in [logits_of(output)]):
        raise cut.refusal("the network's output does not come of what enters it")
    return output


@contextmanager
def _replaying(
    module: nn.Module, path: str, outputs: Sequence[Any], picture: ShapeTensor
) -> Iterator[None]:
    """Let a module give shape tensors of the shapes that it is known to give, without running.

    Once the passage has arrived it is itself again: it may be used behind the block as well.
    """
    shape_trace, device, calls = picture.shape_trace, picture.device, iter(outputs)
    own = vars(module).get("forward")
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
        if own is not None:
            vars(module)["forward"] = own


def _copy(h: Tensor) -> Tensor:
    """A copy with the same strides, for what works in place."""
    copy = h.clone()
    if copy.stride() == h.stride():
        return copy
    if 0 in h.stride():  # nothing can work in place on that
        return h
    return h.new_empty_strided(h.shape, h.stride()).copy_(h)

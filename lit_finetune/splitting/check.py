"""Whether a network can be split at its blocks: tried, and compared with the whole."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lit_finetune.blocks.block import Block, list_blocks
from lit_finetune.modules.outputs import logits_of
from lit_finetune.splitting.split import SplitError, forward_from, forward_prefix


def splits(network: nn.Module, x: Tensor, *, head_name: str | None = None) -> dict[str, str | None]:
    """For each block why a network cannot be split there, or None where it can.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> splits(net, torch.ones(2, 4))
    {'0': None, 'head': None}

    Args:
        network: It is afterwards as it was.
        x: Some input, of two pictures or more.
        head_name: As in `list_blocks`.
    """
    names = [block.name for block in list_blocks(network, head_name)]
    return {name: why_not(network, x, name, head_name=head_name) for name in names}


def why_not(
    network: nn.Module,
    x: Tensor,
    upto: str,
    *,
    head_name: str | None = None,
    in_training: bool = True,
) -> str | None:
    """Why a network cannot be split at a block; None where it can.

    It is split, in evaluation and with its second half in training, and each time compared with
    the whole, which has seen other pictures meanwhile: whatever is left of them must not matter.

    Args:
        network: It is afterwards as it was.
        x: Some input, of two pictures or more.
        upto: The block's name.
        head_name: As in `list_blocks`.
        in_training: Whether to try it in training too.
    """
    blocks = list_blocks(network, head_name)
    with torch.no_grad(), _left_as_it_was(network):
        for training in (False, True) if in_training else (False,):
            _set_modes(network, blocks, upto, training=training)
            held = {n: b.clone() for n, b in _buffers_before(network, blocks, upto).items()}
            try:
                problem = _difference(network, x, upto, head_name)
            except SplitError as error:
                return str(error)
            now = _buffers_before(network, blocks, upto)
            if moved := [n for n in now if n not in held or not torch.equal(now[n], held[n])]:
                return (
                    f"What enters `{upto}` is not the same each time: the buffer {moved[0]!r}"
                    " before it changes whenever the network runs."
                )
            if problem:
                mode = "training" if training else "evaluation"
                return f"Split at `{upto}` it is not the same in {mode}: {problem}."
    return None


def _difference(network: nn.Module, x: Tensor, upto: str, head_name: str | None) -> str | None:
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        torch.manual_seed(0)
        whole = logits_of(network(x))
        h = forward_prefix(network, x, upto, head_name=head_name)
        network(x.flip(0) + 1)
        torch.manual_seed(0)
        halves = forward_from(network, h, upto, head_name=head_name)
    # On a GPU two runs of the same need not agree to the last bit.
    is_close = x.is_cuda and torch.allclose(whole, halves, rtol=1e-3, atol=1e-4)
    is_same = is_close or torch.equal(whole, halves)
    return None if is_same else f"logits differ by up to {(whole - halves).abs().max():.3g}"


def _set_modes(network: nn.Module, blocks: list[Block], upto: str, *, training: bool) -> None:
    network.train(training)
    for block in blocks:
        if block.name == upto:
            return
        for path in block.modules:
            network.get_submodule(path).eval()


def _buffers_before(network: nn.Module, blocks: list[Block], upto: str) -> dict[str, Tensor]:
    """The buffers of the blocks before one."""
    found: dict[str, Tensor] = {}
    for block in blocks:
        if block.name == upto:
            break
        for path in block.modules:
            found.update(network.get_submodule(path).named_buffers(path))
    return found


@contextmanager
def _left_as_it_was(network: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in network.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for buffer, value in buffers:
            if buffer.shape != value.shape:  # some that observe a network are empty at first
                buffer.resize_(value.shape)
            buffer.copy_(value)

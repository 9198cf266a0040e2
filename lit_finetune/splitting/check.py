"""Check whether a network can be split at its blocks, against its whole forward."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lit_finetune.blocks.block import Block, list_blocks
from lit_finetune.modules.outputs import logits_of
from lit_finetune.splitting.split import SplitError, forward_from, forward_prefix


def splits(network: nn.Module, x: Tensor, *, head_name: str | None = None) -> dict[str, str | None]:
    """For each block, the reason why a network cannot be split there; None if it can.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> splits(net, torch.ones(2, 4))
    {'0': None, 'head': None}

    Args:
        network: Its modes and buffers are restored.
        x: An input of at least two images.
        head_name: As in `list_blocks`.
    """
    names = [block.name for block in list_blocks(network, head_name)]
    return {name: check_split(network, x, name, head_name=head_name) for name in names}


def check_split(
    network: nn.Module,
    x: Tensor,
    upto: str,
    *,
    head_name: str | None = None,
    in_training: bool = True,
) -> str | None:
    """The reason why a network cannot be split at a block; None if it can.

    The two halves are compared with the whole forward, in evaluation, and with the second half in
    training. Between the halves the network runs on other images, which must not matter.

    Args:
        network: Its modes and buffers are restored.
        x: An input of at least two images.
        upto: The block's name.
        head_name: As in `list_blocks`.
        in_training: Whether to compare in training, too.
    """
    blocks = list_blocks(network, head_name)
    with torch.no_grad(), _preserve_state(network):
        for training in (False, True) if in_training else (False,):
            _set_modes(network, blocks, upto, training=training)
            before = {n: b.clone() for n, b in _buffers_before(network, blocks, upto).items()}
            try:
                problem = _difference(network, x, upto, head_name)
            except SplitError as error:
                return str(error)
            after = _buffers_before(network, blocks, upto)
            if changed := [
                n for n in after if n not in before or not torch.equal(after[n], before[n])
            ]:
                return (
                    f"The input of `{upto}` differs from run to run: the buffer {changed[0]!r}"
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
    # On a GPU, two runs on the same input may differ in the last bits.
    is_close = x.is_cuda and torch.allclose(whole, halves, rtol=1e-3, atol=1e-4)
    is_equal = is_close or torch.equal(whole, halves)
    return None if is_equal else f"logits differ by up to {(whole - halves).abs().max():.3g}"


def _set_modes(network: nn.Module, blocks: list[Block], upto: str, *, training: bool) -> None:
    network.train(training)
    for block in blocks:
        if block.name == upto:
            return
        for path in block.modules:
            network.get_submodule(path).eval()


def _buffers_before(network: nn.Module, blocks: list[Block], upto: str) -> dict[str, Tensor]:
    """The buffers of the blocks before the block `upto`, by name."""
    buffers: dict[str, Tensor] = {}
    for block in blocks:
        if block.name == upto:
            break
        for path in block.modules:
            buffers.update(network.get_submodule(path).named_buffers(path))
    return buffers


@contextmanager
def _preserve_state(network: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in network.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for buffer, value in buffers:
            if buffer.shape != value.shape:  # those of quantisation observers are empty at first
                buffer.resize_(value.shape)
            buffer.copy_(value)

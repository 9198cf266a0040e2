"""Whether a network that is split at a block gives the bits that it gives whole: with real data."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lit_finetune.blocks.block import list_blocks
from lit_finetune.build import Assembled
from lit_finetune.modules.outputs import logits_of
from lit_finetune.splitting.split import SplitError, forward_from, forward_prefix

HUGE = 2_500_000_000
"""From so many on, they are made in half precision: a small machine has no room for them else."""
LARGE = 60_000_000
"""From so many on, parameters are in half precision, which many processors multiply far faster."""
DRAWING = {"normal_", "uniform_", "trunc_normal_", "erfinv_"}
DRAWING |= {f"{kind}_{what}_" for kind in ("kaiming", "xavier") for what in ("normal", "uniform")}


def split_problems(build: Callable[[], Assembled], num_parameters: int) -> dict[str, str | None]:
    """What is wrong when a network is split in the middle, and before its head.

    Args:
        build: Makes it.
        num_parameters: How large it is.

    Returns:
        By check: `split` says where it cannot be split, and why; `same bits` where the logits of
        the halves are not those of the whole, None if nothing could be compared.
    """
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if num_parameters >= HUGE else usual)
    try:
        with NothingDrawn():
            built = build()
    finally:
        torch.set_default_dtype(usual)
    return _compare(built, torch.bfloat16 if num_parameters >= LARGE else torch.float32)


class NothingDrawn(TorchFunctionMode):
    """Leaves out the drawing of weights, which takes most of the time of making a network."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call the function, unless it draws the values of a parameter."""
        kwargs = kwargs or {}
        tensor = args[0] if args else kwargs.get("tensor")
        is_drawn = getattr(func, "__name__", "") in DRAWING and isinstance(tensor, nn.Parameter)
        return tensor if is_drawn else func(*args, **kwargs)


@torch.no_grad()
def fill(network: nn.Module, gain: float) -> None:
    """Give a network weights with which its activations neither vanish nor, by `gain`, explode."""
    pattern = torch.randn(2**16, generator=torch.Generator().manual_seed(0))
    for parameter in network.parameters():
        repeats = math.ceil(parameter.numel() / len(pattern))
        values = pattern.repeat(repeats)[: parameter.numel()].view_as(parameter)
        if parameter.ndim > 1:
            values.mul_(gain * max(1, parameter[0].numel()) ** -0.5)
        else:
            values.mul_(0.1).add_(1)
        parameter.copy_(values)


@torch.no_grad()
def _compare(built: Assembled, dtype: torch.dtype) -> dict[str, str | None]:
    network, head_name = built.network.eval().to(dtype), built.head_name
    images = _images(built).to(dtype)
    whole = _telling_logits(network, images)
    names = [block.name for block in list_blocks(network, head_name)[1:]]
    refused, different, compared = [], [], 0
    for block in dict.fromkeys([names[len(names) // 2], "head"]):
        try:
            h = forward_prefix(network, images, block, head_name=head_name)
            halves = forward_from(network, h, block, head_name=head_name)
        except SplitError as error:
            refused.append(str(error))
            continue
        compared += 1
        if not torch.equal(whole, halves):
            different.append(f"`{block}`: {(whole - halves).abs().max():.3g}")
    return {
        "split": "; ".join(refused),
        "same bits": "; ".join(different) if compared else None,
    }


def _images(built: Assembled) -> Tensor:
    config = built.data_config
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, len(config.mean), *config.image_size, generator=generator)


def _telling_logits(network: nn.Module, images: Tensor) -> Tensor:
    """Logits by weights with which they say something: equal zeros would prove nothing.

    Raises:
        ValueError: There are none.
    """
    for gain in (1.0, 0.3, 0.1):
        fill(network, gain)
        logits = logits_of(network(images))
        if logits.isfinite().all() and logits.min() < logits.max():
            return logits
    raise ValueError(f"the network gives {logits.tolist()}: nothing to compare")

"""Copy the trained weights and statistics of a network, and restore them."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from lit_finetune.distributed.fsdp2 import distribute_like, full_tensor


def copy_trained(
    model: nn.Module, frozen: Collection[nn.Module], *, auxiliary: Collection[str] = ()
) -> dict[str, Tensor]:
    """Copies, on the CPU, of the parameters that train and the buffers of unfrozen modules.

    Sharded parameters are gathered, so all processes must call this.

    Args:
        model: Its parameters that require a gradient are copied.
        frozen: The modules whose buffers do not change.
        auxiliary: The names of its auxiliary networks, which are not copied.
    """
    frozen_ids = {id(module) for module in frozen}
    trained: dict[str, Tensor] = {n: p for n, p in model.named_parameters() if p.requires_grad}
    for prefix, module in model.named_modules():
        if id(module) not in frozen_ids:
            trained.update(module.named_buffers(prefix, recurse=False))
    prefixes = tuple(f"{name}." for name in auxiliary)
    trained = {name: tensor for name, tensor in trained.items() if not name.startswith(prefixes)}
    return {
        name: full_tensor(tensor.detach()).to("cpu", copy=True) for name, tensor in trained.items()
    }


@torch.no_grad()
def restore_weights(model: nn.Module, copies: Mapping[str, Tensor]) -> None:
    """Restore parameters and buffers from their copies."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, copy in copies.items():
        tensors[name].copy_(distribute_like(tensors[name], copy))

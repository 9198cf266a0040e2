"""Keep what training changes in a network, and put it back."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from lit_finetune.distributed.fsdp2 import distribute_like, full_tensor


def copy_trained(
    model: nn.Module, frozen: Collection[nn.Module], *, auxiliary: Collection[str] = ()
) -> dict[str, Tensor]:
    """Copies, on the CPU, of all that training changes: parameters that train, and statistics.

    Where they are sharded, whole ones are put together, for which all processes must ask.

    Args:
        model: Its parameters that require a gradient are copied.
        frozen: The modules whose buffers stand still.
        auxiliary: The names of networks in it which are left as they are.
    """
    held = {id(module) for module in frozen}
    trained: dict[str, Tensor] = {n: p for n, p in model.named_parameters() if p.requires_grad}
    for prefix, module in model.named_modules():
        if id(module) not in held:
            trained.update(module.named_buffers(prefix, recurse=False))
    roots = tuple(f"{name}." for name in auxiliary)
    trained = {name: tensor for name, tensor in trained.items() if not name.startswith(roots)}
    return {
        name: full_tensor(tensor.detach()).to("cpu", copy=True) for name, tensor in trained.items()
    }


@torch.no_grad()
def put_back(model: nn.Module, copies: Mapping[str, Tensor]) -> None:
    """Give parameters and buffers the values of their copies."""
    present = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, copy in copies.items():
        present[name].copy_(distribute_like(present[name], copy))

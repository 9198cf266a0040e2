"""Shard a network block by block over processes (FSDP2), and access its full tensors.

`fully_shard` reads `requires_grad` from a parameter's shard each time it gathers the full one. So a
phase may freeze and unfreeze shards, also some of one unit, without wrapping again, and only the
gradients of trainable parameters are sent. This module adds what `fully_shard` does not do: all
processes start from the same values and keep the same statistics, and the shards are in place
before the parameters are read.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from lit_finetune._errors import some_of
from lit_finetune.blocks.block import list_blocks


def shard(
    network: nn.Module, mesh: DeviceMesh | None, *, head_name: str | None = None, **options: Any
) -> None:
    """Shard a network block by block over the processes of a mesh, once.

    For `LightningModule.configure_model`, as `shard(self.net, self.device_mesh)`. Each module of a
    block is gathered when it runs. Other parameters, and those that several blocks share, are
    gathered for the network's whole forward. All processes start with the values of the first one,
    and have its batch statistics after each training batch, as under DDP.

    Args:
        network: A network that is called as a whole.
        mesh: `LightningModule.device_mesh`, which only ModelParallelStrategy sets; with None,
            nothing happens.
        head_name: The network's classifier, as in `list_blocks`.
        options: Further arguments of `torch.distributed.fsdp.fully_shard`.

    Raises:
        ValueError: The mesh has tensor parallelism.
    """
    if mesh is None or isinstance(network, FSDPModule):
        return
    refuse_tensor_parallel(mesh)
    if "data_parallel" in (mesh.mesh_dim_names or ()):
        mesh = mesh["data_parallel"]
    broadcast_state(network, torch.device(mesh.device_type))
    for unit in fsdp_units(network, head_name):
        fully_shard(unit, mesh=mesh, **options)
    # Else a validation would leave full parameters in place, which the next optimizer would take.
    fully_shard(network, mesh=mesh, **{"reshard_after_forward": True, **options})
    broadcast_buffers_after_forward(network)


def refuse_tensor_parallel(mesh: DeviceMesh) -> None:
    """Refuse a mesh that splits layers among processes.

    Raises:
        ValueError: Names the arguments of ModelParallelStrategy that split only the batch.
    """
    if "tensor_parallel" in (mesh.mesh_dim_names or ()) and mesh["tensor_parallel"].size() > 1:
        size = mesh.size()
        raise ValueError(
            f"Tensor parallelism over {mesh['tensor_parallel'].size()} processes, the default of"
            " ModelParallelStrategy, is not supported. Use"
            f" ModelParallelStrategy(data_parallel_size={size}, tensor_parallel_size=1)."
        )


def is_sharded(model: nn.Module) -> bool:
    """Whether a model has modules that were passed to `fully_shard`."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


def refuse_unsharded(model: nn.Module, names: Collection[str]) -> None:
    """Refuse trainable parameters that are not sharded.

    Args:
        model: A model that is sharded in part, or not at all.
        names: The parameters that are to train.

    Raises:
        ValueError: Names the parameters that are not sharded.
    """
    found = [n for n, p in model.named_parameters() if n in names and not isinstance(p, DTensor)]
    if found:
        raise ValueError(
            "Under ModelParallelStrategy each process would train for itself what nothing shards:"
            f" {some_of(found)}. Give the module that holds them to `shard` (of"
            " lit_finetune.distributed.fsdp2) or to torch's `fully_shard`, in `configure_model`."
        )


def reshard(model: nn.Module) -> None:
    """Make the shards the model's parameters again.

    A forward without a backward, as in validation, may have left the full parameters in place,
    which no optimizer holds. Nothing is sent.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def broadcast_buffers_after_forward(model: nn.Module) -> None:
    """Give each process the batch statistics of the first one after each training batch.

    As under DDP. `fully_shard` leaves each process its own statistics, so validation would measure
    several networks, and a checkpoint would hold the statistics of any of them.
    """
    inner = {
        id(nested)
        for outer in model.modules()
        if isinstance(outer, FSDPModule)
        for nested in outer.modules()
        if nested is not outer
    }
    for module in model.modules():
        is_root = isinstance(module, FSDPModule) and id(module) not in inner
        if is_root and broadcast_buffers not in module._forward_hooks.values():
            module.register_forward_hook(broadcast_buffers)


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor; if it is sharded, all processes must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def distribute_like(tensor: Tensor, value: Tensor) -> Tensor:
    """A full value, the same in all processes, sharded as a tensor is."""
    if not isinstance(tensor, DTensor):
        return value
    return distribute_tensor(value.to(tensor.device), tensor.device_mesh, tensor.placements)


def fsdp_units(network: nn.Module, head_name: str | None) -> Iterator[nn.Module]:
    """The modules of the blocks, from the input to the head, except those with shared weights."""
    counts = _parameter_counts(network)
    for block in list_blocks(network, head_name):
        for name in block.modules:
            for module in _callable_parts(network.get_submodule(name)):
                inner = _parameter_counts(module)
                if module is not network and inner and inner.items() <= counts.items():
                    yield module


def _parameter_counts(module: nn.Module) -> Mapping[int, int]:
    """The number of names of each parameter in a module, by `id`."""
    return Counter(id(p) for _, p in module.named_parameters(remove_duplicate=False))


def _callable_parts(module: nn.Module) -> Iterator[nn.Module]:
    """The module; if it has no forward (a list of modules), its callable children."""
    if type(module).forward is not nn.Module.forward:
        yield module
    else:
        for child in module.children():
            yield from _callable_parts(child)


@torch.no_grad()
def broadcast_state(network: nn.Module, device: torch.device) -> None:
    """Broadcast the first process's parameters and buffers to all processes.

    Args:
        network: A network that is not sharded yet.
        device: The device of the collective operations.
    """
    for tensor in [*network.parameters(), *network.buffers()]:
        if not tensor.is_meta:
            value = tensor.to(device)  # NCCL accepts CUDA tensors only
            distributed.broadcast(value, src=0)
            tensor.copy_(value)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # by torch
@torch.no_grad()
def broadcast_buffers(network: nn.Module, *_: Any) -> None:
    """Broadcast the buffers of all modules in training mode from the first process."""
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for module in network.modules():
        for buffer in module.buffers(recurse=False) if module.training else ():
            by_dtype.setdefault(buffer.dtype, []).append(buffer)
    for buffers in by_dtype.values():
        flat = torch.cat([buffer.reshape(-1) for buffer in buffers])
        distributed.broadcast(flat, src=0)
        values = torch.split(flat, [buffer.numel() for buffer in buffers])
        for buffer, value in zip(buffers, values, strict=True):
            # `data`: autograd has saved the buffers, although it uses the statistics of the batch.
            buffer.data.copy_(value.view_as(buffer))

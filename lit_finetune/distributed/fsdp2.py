"""Spread a network over processes block by block (FSDP2), and reach what is spread.

`fully_shard` reads `requires_grad` from a parameter's shard each time that it gathers the whole, so
a phase may freeze and thaw shards as it likes, also some of one unit: nothing is built anew, and
only gradients of what trains are sent. What it leaves to others is here: that all processes start
from the same values and keep the same statistics, and that shards are there for who asks for them.
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

    For `LightningModule.configure_model`, as `shard(self.net, self.device_mesh)`. Each module that
    a block consists of is gathered when it runs; parameters outside of these, and such as several
    blocks share, are gathered for the whole of the network's run. All processes start with the
    values of the first one, and after each training batch have its statistics, as under DDP.

    Args:
        network: It is called as a whole.
        mesh: `LightningModule.device_mesh`, which only ModelParallelStrategy sets; nothing happens
            where there is none.
        head_name: The network's classifier, as in `list_blocks`.
        options: Further arguments of `torch.distributed.fsdp.fully_shard`.

    Raises:
        ValueError: The mesh is one of tensor parallelism.
    """
    if mesh is None or isinstance(network, FSDPModule):
        return
    refuse_tensor_parallel(mesh)
    if "data_parallel" in (mesh.mesh_dim_names or ()):
        mesh = mesh["data_parallel"]
    start_alike(network, torch.device(mesh.device_type))
    for unit in units(network, head_name):
        fully_shard(unit, mesh=mesh, **options)
    # Else a validation would leave whole parameters there, which the next optimizer would take.
    fully_shard(network, mesh=mesh, **{"reshard_after_forward": True, **options})
    keep_statistics_alike(network)


def refuse_tensor_parallel(mesh: DeviceMesh) -> None:
    """Refuse a mesh that splits layers among processes.

    Raises:
        ValueError: Names the arguments of ModelParallelStrategy that split the batch alone.
    """
    if "tensor_parallel" in (mesh.mesh_dim_names or ()) and mesh["tensor_parallel"].size() > 1:
        size = mesh.size()
        raise ValueError(
            f"Tensor parallelism over {mesh['tensor_parallel'].size()} processes, which is what"
            " ModelParallelStrategy does unless told otherwise, is not supported. Use"
            f" ModelParallelStrategy(data_parallel_size={size}, tensor_parallel_size=1)."
        )


def is_sharded(model: nn.Module) -> bool:
    """Whether a model holds parts that were given to `fully_shard`."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


def refuse_unsharded(model: nn.Module, names: Collection[str]) -> None:
    """Refuse that parameters train that nobody has sharded.

    Args:
        model: Sharded in part, or not at all.
        names: The parameters that are to train.

    Raises:
        ValueError: Names them.
    """
    found = [n for n, p in model.named_parameters() if n in names and not isinstance(p, DTensor)]
    if found:
        raise ValueError(
            "Under ModelParallelStrategy each process would train for itself what nothing shards:"
            f" {some_of(found)}. Give the module that holds them to `shard` (of"
            " lit_finetune.distributed.fsdp2) or to torch's `fully_shard`, in `configure_model`."
        )


def reshard(model: nn.Module) -> None:
    """Put the shards in place as the model's parameters.

    A run without a backward pass, such as a validation, may have left whole ones there, which no
    optimizer knows. Nothing is sent.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def keep_statistics_alike(model: nn.Module) -> None:
    """Let each process have the batch statistics of the first one after each training batch.

    As under DDP. `fully_shard` leaves each process its own, so that a validation would measure
    several networks, and a checkpoint hold the statistics of any of them.
    """
    inside = {
        id(inner)
        for outer in model.modules()
        if isinstance(outer, FSDPModule)
        for inner in outer.modules()
        if inner is not outer
    }
    for module in model.modules():
        is_root = isinstance(module, FSDPModule) and id(module) not in inside
        if is_root and share_statistics not in module._forward_hooks.values():
            module.register_forward_hook(share_statistics)


def whole(tensor: Tensor) -> Tensor:
    """A tensor itself, or what the shards of all processes make up; all must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, value: Tensor) -> Tensor:
    """A whole value, the same in all processes, spread as a tensor is."""
    if not isinstance(tensor, DTensor):
        return value
    return distribute_tensor(value.to(tensor.device), tensor.device_mesh, tensor.placements)


def units(network: nn.Module, head_name: str | None) -> Iterator[nn.Module]:
    """The modules of the blocks, from the input to the head, without those that share weights."""
    places = _places(network)
    for block in list_blocks(network, head_name):
        for name in block.modules:
            for module in _callable_parts(network.get_submodule(name)):
                inside = _places(module)
                if module is not network and inside and inside.items() <= places.items():
                    yield module


def _places(module: nn.Module) -> Mapping[int, int]:
    """In how many places of a module each of its parameters is."""
    return Counter(id(p) for _, p in module.named_parameters(remove_duplicate=False))


def _callable_parts(module: nn.Module) -> Iterator[nn.Module]:
    """The module, or where nobody can call it (a list of modules), what it holds."""
    if type(module).forward is not nn.Module.forward:
        yield module
    else:
        for child in module.children():
            yield from _callable_parts(child)


@torch.no_grad()
def start_alike(network: nn.Module, device: torch.device) -> None:
    """Give the network of each process the values of the first one's.

    Args:
        network: Whole in each process.
        device: What processes talk through.
    """
    for tensor in [*network.parameters(), *network.buffers()]:
        if not tensor.is_meta:
            value = tensor.to(device)  # the collectives of GPUs take nothing else
            distributed.broadcast(value, src=0)
            tensor.copy_(value)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # by torch
@torch.no_grad()
def share_statistics(network: nn.Module, *_: Any) -> None:
    """Send the buffers of all modules in training mode from the first process to the others."""
    kinds: dict[torch.dtype, list[Tensor]] = {}
    for module in network.modules():
        for buffer in module.buffers(recurse=False) if module.training else ():
            kinds.setdefault(buffer.dtype, []).append(buffer)
    for buffers in kinds.values():
        flat = torch.cat([buffer.reshape(-1) for buffer in buffers])
        distributed.broadcast(flat, src=0)
        values = torch.split(flat, [buffer.numel() for buffer in buffers])
        for buffer, value in zip(buffers, values, strict=True):
            # `data`, since autograd has noted the statistics, though it uses those of the batch.
            buffer.data.copy_(value.view_as(buffer))

"""Refuse strategies, and options of them, under which a schedule would silently be wrong."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import (
    DDPStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
)
from torch.distributed.fsdp import MixedPrecision, ShardingStrategy

from lit_finetune.distributed.fsdp2 import refuse_tensor_parallel
from lit_finetune.modules.fsdp1 import is_fsdp1_wrapped

_FULL_PRECISION = {None, torch.float32}
_FSDP1_OPTIONS = {
    "auto_wrap_policy",
    "backward_prefetch",
    "forward_prefetch",
    "limit_all_gathers",
    "sync_module_states",
    "use_orig_params",
}
"""The arguments of FullyShardedDataParallel with which schedules were tested."""
ALTERNATIVES = (
    "Use Trainer(strategy='ddp'), or one device; to shard the parameters, Trainer(strategy="
    "ModelParallelStrategy(data_parallel_size=…, tensor_parallel_size=1))."
)


def refuse_unsupported(strategy: Strategy) -> None:
    """Refuse a strategy under which unfreezing would silently be wrong.

    Raises:
        ValueError: Names the strategies that work.
    """
    refuse_fsdp1_options(strategy)
    if isinstance(strategy, ModelParallelStrategy):
        refuse_tensor_parallel(strategy.device_mesh)
        if strategy._layer_sync is not None:
            raise ValueError(
                "ModelParallelStrategy ignores `sync_batchnorm=True`: each process would normalize"
                " on its own. Leave it out and convert the network before, with"
                " `torch.nn.SyncBatchNorm.convert_sync_batchnorm`, or use strategy='ddp'."
            )
    elif not isinstance(strategy, SingleDeviceStrategy | DDPStrategy | FSDPStrategy):
        raise ValueError(
            f"Unfreezing is not supported under {type(strategy).__name__}: its wrapper would ignore"
            f" parameters that start to train. {ALTERNATIVES}"
        )


def refuse_fsdp1_options(strategy: Strategy) -> None:
    """Refuse untested options of FSDPStrategy (FSDP1).

    Raises:
        ValueError: Names the options, and the strategies that work.
    """
    if not isinstance(strategy, FSDPStrategy):
        return
    if problems := ", ".join(_unsupported_fsdp1_options(strategy)):
        raise ValueError(f"Not supported under FSDPStrategy: {problems}. {ALTERNATIVES}")


def _unsupported_fsdp1_options(strategy: FSDPStrategy) -> Iterator[str]:
    full_shard, dtypes = ShardingStrategy.FULL_SHARD, strategy.mixed_precision or MixedPrecision()
    if not strategy.kwargs["use_orig_params"]:
        yield "`use_orig_params=False` (optimizers would see only flat vectors of parameters)"
    if strategy.sharding_strategy is not full_shard:
        yield f"`sharding_strategy` {strategy.sharding_strategy.name} (FULL_SHARD is)"
    if strategy._state_dict_type != "full":
        yield f"`state_dict_type={strategy._state_dict_type!r}` ('full' is)"
    if strategy.precision_plugin.precision != "32-true" or not _FULL_PRECISION.issuperset(
        (dtypes.param_dtype, dtypes.reduce_dtype, dtypes.buffer_dtype)
    ):
        yield "any precision but `32-true`"
    if strategy.cpu_offload is not None and strategy.cpu_offload.offload_params:
        yield "`cpu_offload`"
    if strategy._layer_sync is not None:
        yield "`sync_batchnorm`"
    if strategy.cluster_environment is not None and strategy.world_size == 1:
        yield "one process (leave the strategy out)"
    if strategy._activation_checkpointing_kwargs:
        yield "`activation_checkpointing`"
    yield from (f"`{name}`" for name in strategy.kwargs.keys() - _FSDP1_OPTIONS)


def refuse_arguments_under_fsdp1(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments of a classifier that were not tested under FSDPStrategy.

    Raises:
        ValueError: Names the arguments.
    """
    names = ("compile", "gradient_checkpointing", "lora")
    if unsupported := [f"`{name}`" for name in names if arguments.get(name)]:
        raise ValueError(
            f"Not supported under FSDPStrategy: {', '.join(unsupported)}. {ALTERNATIVES}"
        )


def refuse_fsdp1_rewrap(strategy: Strategy, module: LightningModule) -> None:
    """Refuse to wrap a module again that FSDPStrategy has wrapped: it would shard the shards.

    Raises:
        ValueError: Says what to do instead.
    """
    if isinstance(strategy, FSDPStrategy) and is_fsdp1_wrapped(module):
        raise ValueError(
            "The module was wrapped by FSDPStrategy in an earlier run, and cannot be wrapped again."
            " Continue with a new module from a checkpoint (`ckpt_path`), or use"
            " ModelParallelStrategy."
        )

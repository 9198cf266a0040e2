"""The strategy's wrapper follows the parameters."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
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
from torch import nn
from torch.distributed.fsdp import MixedPrecision, ShardingStrategy
from torch.distributed.fsdp.wrap import CustomPolicy

from lit_finetune.checkpoints.sharded import plain_data_only, shared_part
from lit_finetune.distributed.fsdp2 import (
    keep_statistics_alike,
    refuse_tensor_parallel,
    refuse_unsharded,
    reshard,
    share_statistics,
    start_alike,
    units,
)
from lit_finetune.modules.fsdp1 import is_flat
from lit_finetune.schedules.plan import Plan

_FULL_PRECISION = {None, torch.float32}
_FLAT_OPTIONS = {
    "auto_wrap_policy",
    "backward_prefetch",
    "forward_prefetch",
    "limit_all_gathers",
    "sync_module_states",
    "use_orig_params",
}
"""The arguments of FullyShardedDataParallel under which phases are known to be right."""
_INSTEAD = (
    "Use Trainer(strategy='ddp'), or one device; to shard the parameters, Trainer(strategy="
    "ModelParallelStrategy(data_parallel_size=…, tensor_parallel_size=1))."
)


def refuse_unsupported(strategy: Strategy) -> None:
    """Refuse a strategy under which unfreezing would go wrong without a word.

    Raises:
        ValueError: Names the strategies that work.
    """
    refuse_flat(strategy)
    if isinstance(strategy, ModelParallelStrategy):
        refuse_tensor_parallel(strategy.device_mesh)
        if strategy._layer_sync is not None:
            raise ValueError(
                "ModelParallelStrategy passes over `sync_batchnorm=True`: each process would"
                " normalize by itself. Leave it out and convert the network before, with"
                " `torch.nn.SyncBatchNorm.convert_sync_batchnorm`, or use strategy='ddp'."
            )
    elif not isinstance(strategy, SingleDeviceStrategy | DDPStrategy | FSDPStrategy):
        raise ValueError(
            f"Unfreezing is not supported under {type(strategy).__name__}: its wrapper would not"
            f" learn of parameters that start to train. {_INSTEAD}"
        )


def refuse_flat(strategy: Strategy) -> None:
    """Refuse what nobody knows to be right under FSDPStrategy (FSDP1).

    Raises:
        ValueError: Says what it is, and names the strategies that work.
    """
    if not isinstance(strategy, FSDPStrategy):
        return
    if wrong := ", ".join(_wrong_with_flat(strategy)):
        raise ValueError(f"Not supported under FSDPStrategy: {wrong}. {_INSTEAD}")


def _wrong_with_flat(strategy: FSDPStrategy) -> Iterator[str]:
    full, dtypes = ShardingStrategy.FULL_SHARD, strategy.mixed_precision or MixedPrecision()
    if not strategy.kwargs["use_orig_params"]:
        yield "`use_orig_params=False` (optimizers would know whole vectors of parameters only)"
    if strategy.sharding_strategy is not full:
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
        yield "one process (it has nothing to share: leave the strategy out)"
    if strategy._activation_checkpointing_kwargs:
        yield "`activation_checkpointing`"
    yield from (f"`{name}`" for name in strategy.kwargs.keys() - _FLAT_OPTIONS)


def refuse_under_flat(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments of a classifier that nobody has seen to be right under FSDPStrategy.

    Raises:
        ValueError: Names them.
    """
    names = ("compile", "gradient_checkpointing", "lora")
    if given := [f"`{name}`" for name in names if arguments.get(name)]:
        raise ValueError(f"Not supported under FSDPStrategy: {', '.join(given)}. {_INSTEAD}")


def refuse_wrapped(strategy: Strategy, module: LightningModule) -> None:
    """Refuse to wrap once more what FSDPStrategy has wrapped, of which it would share out a share.

    Raises:
        ValueError: Says how to go on.
    """
    if isinstance(strategy, FSDPStrategy) and is_flat(module):
        raise ValueError(
            "The module was wrapped by FSDPStrategy in a run before, and cannot be again. Go on"
            " with a new module, from a checkpoint (`ckpt_path`), or use ModelParallelStrategy."
        )


def begin_flat(strategy: Strategy, module: LightningModule) -> bool:
    """See to what FSDP1 leaves to others, before it wraps a module.

    Returns:
        Whether the strategy is going to wrap the module as FSDP1.
    """
    if not isinstance(strategy, FSDPStrategy) or is_flat(module):
        return False
    if share_statistics not in module._forward_hooks.values():
        start_alike(module, strategy.root_device)
        module.register_forward_hook(share_statistics)
    return True


def wrap_by_blocks(strategy: Strategy, network: nn.Module, head_name: str | None) -> None:
    """Let FSDPStrategy wrap a network block by block, unless the user has said how."""
    if isinstance(strategy, FSDPStrategy) and "auto_wrap_policy" not in strategy.kwargs:
        chosen = {id(unit) for unit in units(network, head_name)}
        strategy.kwargs["auto_wrap_policy"] = CustomPolicy(lambda module: id(module) in chosen)
        # Else torch would wrap each batch norm for itself.
        strategy.mixed_precision = MixedPrecision(_module_classes_to_ignore=())


def shards(strategy: Strategy) -> bool:
    """Whether each process holds a part of each parameter only."""
    return isinstance(strategy, ModelParallelStrategy | FSDPStrategy)


def rewrap(strategy: Strategy, module: LightningModule) -> None:
    """Build DistributedDataParallel anew, so that it reduces what trains now, and only that.

    It takes note of the parameters that require a gradient once, when it is built; those that
    start later would drift apart between the processes (lightning issue #20340). Nothing happens
    under a strategy that does not wrap.
    """
    if isinstance(strategy, DDPStrategy):
        strategy.model = module
        # Lightning notes that a static graph was seen by the wrapper; the new one has not yet.
        strategy._pl_static_graph_delay_done = False
        strategy.configure_ddp()


def around_setup(strategy: Strategy, before: Callable[[], None], after: Callable[[], None]) -> None:
    """Act right before and right after a strategy sets up the module.

    Before, all its hooks that build layers are done, and nobody has taken note yet of what requires
    a gradient. Afterwards there are optimizers, and no callback has been asked for anything since.
    """
    setup = strategy.setup

    def with_act(trainer: Any) -> None:
        vars(strategy).pop("setup", None)
        before()
        setup(trainer)
        after()

    strategy.setup = with_act  # type: ignore[method-assign]  # of this object alone


def after_batch_start(strategy: Strategy, act: Callable[[], None]) -> None:
    """Act at the start of each training batch, after the hooks of all callbacks and the module."""
    start = strategy.on_train_batch_start

    def with_act(batch: Any, batch_idx: int) -> None:
        start(batch, batch_idx)
        act()

    strategy.on_train_batch_start = with_act  # type: ignore[method-assign]


def leave_alone(strategy: Strategy) -> None:
    """Take back what `around_setup` and `after_batch_start` have done."""
    for name in ("setup", "on_train_batch_start"):
        vars(strategy).pop(name, None)


def expect_shards(
    strategy: Strategy,
    module: LightningModule,
    plan: Plan,
    prepare: Callable[[dict[str, Any]], None],
) -> None:
    """See to what FSDP2 leaves to others, where a training begins under a strategy that shards.

    Args:
        strategy: Under others than those that shard nothing happens.
        module: Its `configure_model` has been called.
        plan: What will train.
        prepare: What to do before a checkpoint is read, as in `look_ahead`.

    Raises:
        ValueError: Something will train that is not sharded.
    """
    if begin_flat(strategy, module):
        if any(phase.entry.restore_best for phase in plan.phases):
            raise ValueError(f"Not supported under FSDPStrategy: `restore_best`. {_INSTEAD}")
        look_ahead(strategy, prepare)
    elif shards(strategy):
        phases = [plan.trainable(index) for index in range(len(plan.phases))]
        refuse_unsharded(module, frozenset().union(*phases))
        reshard(module)
        keep_statistics_alike(module)
        look_ahead(strategy, prepare)


def look_ahead(strategy: Strategy, prepare: Callable[[dict[str, Any]], None] | None) -> None:
    """See what a checkpoint says before a strategy that shards reads the shards.

    Such a one reads weights and optimizer states at once, when the optimizers exist, and hands out
    the rest only then: their groups have to be those of the checkpoint's phase before.

    Args:
        strategy: Others than those that shard are left alone.
        prepare: What to do before, given all but the shards; None where nothing is trained: then
            the optimizers of a training before are none of the checkpoint's business.
    """
    if not isinstance(strategy, ModelParallelStrategy | FSDPStrategy):
        return

    def read_prepared(
        checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        del strategy.load_checkpoint  # of this object: the class has its own
        plain = shared_part(strategy.broadcast(checkpoint_path))
        if prepare is None:
            strategy.optimizers = []
        else:
            prepare(plain)
            refuse_other_order(strategy, plain.get("optimizer_states", []))
        with plain_data_only(checkpoint_path):
            return _read(strategy, checkpoint_path, weights_only, plain.get("optimizer_states", []))

    strategy.load_checkpoint = read_prepared  # type: ignore[method-assign]


def refuse_other_order(strategy: Strategy, states: Sequence[Mapping[str, Any]]) -> None:
    """Refuse optimizer states that number the parameters otherwise than the strategy will read it.

    A sharded run numbers them in the order of the network, any other one in that of the groups;
    Lightning takes every file for one of the first kind, and would give the head's momentum to the
    stem where the shapes allow it.

    Raises:
        ValueError: Says what can be done with such a checkpoint.
    """
    assert strategy.lightning_module is not None
    numbers = {id(p): n for n, p in enumerate(strategy.lightning_module.parameters())}
    for optimizer, state in zip(strategy.optimizers, states, strict=False):
        ours = [[numbers[id(p)] for p in group["params"]] for group in optimizer.param_groups]
        if state["state"] and [group["params"] for group in state["param_groups"]] != ours:
            raise ValueError(
                "The checkpoint's optimizer state is of a run under another strategy, or of other"
                " parameter groups. Resume it under the strategy that wrote it, or start anew from"
                " its weights alone, passed as `weights`."
            )


def _read(
    strategy: ModelParallelStrategy | FSDPStrategy,
    path: str | Path,
    weights_only: bool | None,
    states: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Read a checkpoint as the strategy does, which fails where an optimizer keeps no state."""
    optimizers = strategy.optimizers
    if not states or any(state["state"] for state in states):
        return strategy.load_checkpoint(path, weights_only)
    if isinstance(strategy, FSDPStrategy):
        raise ValueError(
            "FSDPStrategy reads no checkpoint whose optimizer has no state, as after no step, or of"
            f" SGD without momentum. Start anew from its weights, passed as `weights`. {_INSTEAD}"
        )
    strategy.optimizers = []
    content = strategy.load_checkpoint(path, weights_only)
    strategy.optimizers = optimizers
    for optimizer, state in zip(optimizers, states, strict=False):
        optimizer.load_state_dict(dict(state))
    return content

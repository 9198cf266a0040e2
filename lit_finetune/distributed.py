"""The strategy's wrapper follows the parameters."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import (
    DDPStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
)

from lit_finetune.plan import Plan
from lit_finetune.sharded_checkpoint import plain_part
from lit_finetune.sharding import (
    keep_statistics_alike,
    refuse_tensor_parallel,
    refuse_unsharded,
    reshard,
)

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
    elif not isinstance(strategy, SingleDeviceStrategy | DDPStrategy):
        raise ValueError(
            f"Unfreezing is not supported under {type(strategy).__name__}: its wrapper would not"
            f" learn of parameters that start to train. {_INSTEAD}"
        )


def refuse_flat(strategy: Strategy) -> None:
    """Refuse to train where a process has its share of all parameters as one vector.

    Raises:
        ValueError: Names the strategies that work.
    """
    if isinstance(strategy, FSDPStrategy):
        raise ValueError(
            "Under FSDPStrategy parameters are flat pieces of one vector when the optimizer is"
            " made: which of them are weights, which norms and biases, can no longer be told, and"
            f" all would train without weight decay. {_INSTEAD}"
        )


def shards(strategy: Strategy) -> bool:
    """Whether each process holds a part of each parameter only."""
    return isinstance(strategy, ModelParallelStrategy)


def wrap_again(strategy: Strategy, module: LightningModule) -> None:
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
    if shards(strategy):
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
    if not isinstance(strategy, ModelParallelStrategy):
        return

    def read_prepared(
        checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        del strategy.load_checkpoint  # of this object: the class has its own
        plain = plain_part(strategy.broadcast(checkpoint_path))
        if prepare is None:
            strategy.optimizers = []
        else:
            prepare(plain)
            refuse_other_order(strategy, plain.get("optimizer_states", []))
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
    strategy: ModelParallelStrategy,
    path: str | Path,
    weights_only: bool | None,
    states: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Read a checkpoint as the strategy does, which fails where an optimizer keeps no state."""
    optimizers = strategy.optimizers
    if not states or any(state["state"] for state in states):
        return strategy.load_checkpoint(path, weights_only)
    strategy.optimizers = []
    content = strategy.load_checkpoint(path, weights_only)
    strategy.optimizers = optimizers
    for optimizer, state in zip(optimizers, states, strict=False):
        optimizer.load_state_dict(dict(state))
    return content

"""Wrap a module again when its trainable parameters change, under the strategies that need it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.precision import (
    BitsandbytesPrecision,
    Precision,
    TransformerEnginePrecision,
)
from lightning.pytorch.strategies import (
    DDPStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    Strategy,
)
from torch import nn
from torch.distributed.fsdp import MixedPrecision
from torch.distributed.fsdp.wrap import CustomPolicy

from lit_finetune.checkpoints.sharded import mmap_plain_part, plain_data_only
from lit_finetune.distributed.fsdp2 import (
    broadcast_buffers,
    broadcast_buffers_after_forward,
    broadcast_state,
    fsdp_units,
    refuse_unsharded,
    reshard,
)
from lit_finetune.distributed.supported_strategies import ALTERNATIVES
from lit_finetune.modules.fsdp1 import is_fsdp1_wrapped
from lit_finetune.schedules.plan import Plan


def prepare_fsdp1(strategy: Strategy, module: LightningModule) -> bool:
    """Before FSDP1 wraps a module, give all processes the same values and statistics.

    Returns:
        Whether the strategy is going to wrap the module with FSDP1.
    """
    if not isinstance(strategy, FSDPStrategy) or is_fsdp1_wrapped(module):
        return False
    if broadcast_buffers not in module._forward_hooks.values():
        broadcast_state(module, strategy.root_device)
        module.register_forward_hook(broadcast_buffers)
    return True


def wrap_by_blocks(strategy: Strategy, network: nn.Module, head_name: str | None) -> None:
    """Let FSDPStrategy wrap a network block by block, unless the user has set a policy."""
    if isinstance(strategy, FSDPStrategy) and "auto_wrap_policy" not in strategy.kwargs:
        unit_ids = {id(unit) for unit in fsdp_units(network, head_name)}
        strategy.kwargs["auto_wrap_policy"] = CustomPolicy(lambda module: id(module) in unit_ids)
        # Else torch would wrap each batch norm separately.
        strategy.mixed_precision = MixedPrecision(_module_classes_to_ignore=())


def shards_parameters(strategy: Strategy) -> bool:
    """Whether each process holds only a shard of each parameter."""
    return isinstance(strategy, ModelParallelStrategy | FSDPStrategy)


def exchanges_parameters(strategy: Strategy, precision: Precision) -> bool:
    """Whether a strategy or a precision puts other parameters in the place of a module's."""
    converts = BitsandbytesPrecision | TransformerEnginePrecision
    return shards_parameters(strategy) or isinstance(precision, converts)


def rewrap(strategy: Strategy, module: LightningModule) -> None:
    """Build DistributedDataParallel again, so that it reduces the parameters that train now.

    It registers the parameters that require a gradient only when it is built; those that start to
    train later would differ between the processes (lightning issue #20340). Does nothing under
    strategies other than DDP.
    """
    if isinstance(strategy, DDPStrategy):
        strategy.model = module
        # Lightning remembers that the wrapper has seen its static graph; the new one has not.
        strategy._pl_static_graph_delay_done = False
        strategy.configure_ddp()


def hook_setup(strategy: Strategy, before: Callable[[], None], after: Callable[[], None]) -> None:
    """Call functions right before and right after a strategy sets up the module.

    Before, the module's hooks have built all layers, and no wrapper has registered the parameters
    that require a gradient. After, the optimizers exist, and no callback hook has run since.
    """
    setup = strategy.setup

    def setup_with_hooks(trainer: Any) -> None:
        vars(strategy).pop("setup", None)
        before()
        setup(trainer)
        after()

    strategy.setup = setup_with_hooks  # type: ignore[method-assign]  # of this object only


def hook_batch_start(strategy: Strategy, hook: Callable[[], None]) -> None:
    """Call a function at the start of each training batch, after all other hooks."""
    start = strategy.on_train_batch_start

    def start_with_hook(batch: Any, batch_idx: int) -> None:
        start(batch, batch_idx)
        hook()

    strategy.on_train_batch_start = start_with_hook  # type: ignore[method-assign]


def remove_hooks(strategy: Strategy) -> None:
    """Remove the hooks of `hook_setup` and `hook_batch_start`."""
    for name in ("setup", "on_train_batch_start"):
        vars(strategy).pop(name, None)


def prepare_sharded_fit(
    strategy: Strategy,
    module: LightningModule,
    plan: Plan,
    prepare: Callable[[dict[str, Any]], None],
) -> None:
    """Prepare a fit under a strategy that shards: equal values, shards in place, checkpoints.

    Args:
        strategy: Nothing happens under strategies that do not shard.
        module: Its `configure_model` has been called.
        plan: The run's plan.
        prepare: Called before a checkpoint is read, as in `prepare_before_load`.

    Raises:
        ValueError: A parameter will train that is not sharded.
    """
    if prepare_fsdp1(strategy, module):
        if any(phase.entry.restore_best for phase in plan.phases):
            raise ValueError(f"Not supported under FSDPStrategy: `restore_best`. {ALTERNATIVES}")
        prepare_before_load(strategy, prepare)
    elif shards_parameters(strategy):
        phases = [plan.trainable(index) for index in range(len(plan.phases))]
        refuse_unsharded(module, frozenset().union(*phases))
        reshard(module)
        broadcast_buffers_after_forward(module)
        prepare_before_load(strategy, prepare)


def prepare_before_load(
    strategy: Strategy, prepare: Callable[[dict[str, Any]], None] | None
) -> None:
    """Call a function with a checkpoint's plain data before a strategy reads its shards.

    A strategy that shards loads weights and optimizer states in one step, and returns the plain
    data only afterwards; but the optimizers' groups have to be those of the checkpoint's phase
    before.

    Args:
        strategy: Nothing happens under strategies that do not shard.
        prepare: Called with the checkpoint without its shards; None outside of training: then the
            optimizers of an earlier fit are not loaded.
    """
    if not isinstance(strategy, ModelParallelStrategy | FSDPStrategy):
        return

    def read_prepared(
        checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        del strategy.load_checkpoint  # of this object: the method of the class remains
        data = mmap_plain_part(strategy.broadcast(checkpoint_path))
        if prepare is None:
            strategy.optimizers = []
        else:
            prepare(data)
            refuse_parameter_order(strategy, data.get("optimizer_states", []))
        with plain_data_only(checkpoint_path):
            return _read(strategy, checkpoint_path, weights_only, data.get("optimizer_states", []))

    strategy.load_checkpoint = read_prepared  # type: ignore[method-assign]


def refuse_parameter_order(strategy: Strategy, states: Sequence[Mapping[str, Any]]) -> None:
    """Refuse optimizer states that number the parameters in another order than the strategy.

    A sharded run numbers them in the order of the network, other runs in the order of the groups.
    Lightning reads every file as the former, and would load the head's momentum into the stem if
    the shapes match.

    Raises:
        ValueError: Says what can be done with such a checkpoint.
    """
    assert strategy.lightning_module is not None
    numbers = {id(p): n for n, p in enumerate(strategy.lightning_module.parameters())}
    for optimizer, state in zip(strategy.optimizers, states, strict=False):
        expected = [[numbers[id(p)] for p in group["params"]] for group in optimizer.param_groups]
        if state["state"] and [group["params"] for group in state["param_groups"]] != expected:
            raise ValueError(
                "The checkpoint's optimizer state is from a run with another strategy or other"
                " parameter groups. Resume it under the strategy that wrote it, or start a new run"
                " from its weights alone, passed as `weights`."
            )


def _read(
    strategy: ModelParallelStrategy | FSDPStrategy,
    path: str | Path,
    weights_only: bool | None,
    states: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Read a checkpoint as the strategy does, also if an optimizer has no state."""
    optimizers = strategy.optimizers
    if not states or any(state["state"] for state in states):
        return strategy.load_checkpoint(path, weights_only)
    if isinstance(strategy, FSDPStrategy):
        raise ValueError(
            "FSDPStrategy cannot read a checkpoint whose optimizer has no state, as before the"
            " first step or of SGD without momentum. Start a new run from its weights alone,"
            f" passed as `weights`. {ALTERNATIVES}"
        )
    strategy.optimizers = []
    content = strategy.load_checkpoint(path, weights_only)
    strategy.optimizers = optimizers
    for optimizer, state in zip(optimizers, states, strict=False):
        optimizer.load_state_dict(dict(state))
    return content

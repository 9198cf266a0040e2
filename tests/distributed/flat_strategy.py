"""FSDP1 on the CPU, where Lightning has it on GPUs only, and what it has spread put together."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import (
    FullOptimStateDictConfig,
    FullStateDictConfig,
    FullyShardedDataParallel,
    StateDictType,
    _optim_utils,
)
from torch.optim import Optimizer


class FlatOnCPU(FSDPStrategy):
    """Lightning's strategy, of which all but the device stays as it is."""

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Tensor]:
        """What a checkpoint holds."""
        with copied_states():
            return super().optimizer_state(optimizer)

    def _setup_model(self, model: nn.Module) -> nn.Module:
        return FullyShardedDataParallel(
            model,
            mixed_precision=self.mixed_precision_config,
            sharding_strategy=self.sharding_strategy,
            device_id=torch.device("cpu"),
            **self.kwargs,
        )


@contextmanager
def copied_states() -> Iterator[None]:
    """Let torch copy each state that it puts together, as it does from a GPU.

    On the CPU it leaves all of a parameter's states in the same memory: `exp_avg` would have the
    values of `exp_avg_sq` (torch 2.15).
    """
    shaped: Any = _optim_utils._unflatten_orig_param_states  # type: ignore[attr-defined]

    def copied(info: Any, states: dict[str, dict[str, Any]], name: str, *args: Any) -> None:
        shaped(info, states, name, *args)
        for state in states.values():
            if name in state:
                state[name] = state[name].clone()

    _optim_utils._unflatten_orig_param_states = copied  # type: ignore[attr-defined]
    try:
        yield
    finally:
        _optim_utils._unflatten_orig_param_states = shaped  # type: ignore[attr-defined]


def whole_values(trainer: Trainer) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """The module's weights and statistics, and what the optimizer keeps of each parameter."""
    model: Any = trainer.strategy.model
    kind = StateDictType.FULL_STATE_DICT
    everywhere = (
        FullStateDictConfig(rank0_only=False),
        FullOptimStateDictConfig(rank0_only=False, offload_to_cpu=False),
    )
    with FullyShardedDataParallel.state_dict_type(model, kind, *everywhere):
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        states = FullyShardedDataParallel.optim_state_dict(model, trainer.optimizers[0])["state"]
    return weights, {
        name: {key: value.clone() for key, value in state.items() if value is not None}
        for name, state in states.items()
    }

"""FSDP1 on the CPU, where Lightning has it on GPUs only, and what it has spread put together."""

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
)


class FlatOnCPU(FSDPStrategy):
    """Lightning's strategy, of which all but the device stays as it is."""

    def _setup_model(self, model: nn.Module) -> nn.Module:
        return FullyShardedDataParallel(
            model,
            mixed_precision=self.mixed_precision_config,
            sharding_strategy=self.sharding_strategy,
            device_id=torch.device("cpu"),
            **self.kwargs,
        )


def whole_values(trainer: Trainer) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """The module's weights and statistics, and what the optimizer keeps of each parameter."""
    model: Any = trainer.strategy.model
    with FullyShardedDataParallel.state_dict_type(
        model,
        StateDictType.FULL_STATE_DICT,
        FullStateDictConfig(rank0_only=False),
        FullOptimStateDictConfig(rank0_only=False),
    ):
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        states = FullyShardedDataParallel.optim_state_dict(model, trainer.optimizers[0])["state"]
    return weights, {
        name: {key: value.clone() for key, value in state.items() if value is not None}
        for name, state in states.items()
    }

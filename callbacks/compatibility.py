"""Other callbacks and strategies: which can be combined with a schedule, and how."""

from collections.abc import Mapping

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    LearningRateFinder,
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from lit_finetune.distributed.supported_strategies import refuse_fsdp1_rewrap, refuse_unsupported
from lit_finetune.distributed.wrapping import exchanges_parameters, shards_parameters
from lit_finetune.freezing.trainable_state import refuse_exchanged
from lit_finetune.freezing.weight_averaging import average_exactly
from lit_finetune.modules.fsdp1 import parameters_by_name, refuse_non_elementwise_optimizer
from lit_finetune.schedules.plan import Plan

from .linear_probe import LinearProbe


def check_compatibility(trainer: Trainer) -> None:
    """Refuse strategies and callbacks that a schedule does not support.

    Raises:
        ValueError: The strategy is not supported, or a callback freezes layers itself or copies a
            sharded network.
    """
    refuse_unsupported(trainer.strategy)
    refuse_fsdp1_rewrap(trainer.strategy, trainer.lightning_module)
    if isinstance(trainer.strategy, FSDPStrategy) and has_finder(trainer):
        raise ValueError("The Tuner is not supported under FSDPStrategy: use it with one device.")
    freezing = [type(c).__name__ for c in _callbacks(trainer) if isinstance(c, BaseFinetuning)]
    if freezing:
        raise ValueError(
            f"{', '.join(freezing)} freezes layers and adds parameter groups too, so it cannot be"
            " combined with FreezeUnfreezeCallback: leave one of them out."
        )
    averaging = WeightAveraging | StochasticWeightAveraging
    copying = [type(each).__name__ for each in _callbacks(trainer) if isinstance(each, averaging)]
    if copying and shards_parameters(trainer.strategy):
        raise ValueError(
            f"{', '.join(copying)} copies the network, and one that is sharded cannot be copied."
            " Leave it out, or use strategy='ddp'."
        )


def refuse_incompatible(trainer: Trainer, plan: Plan) -> None:
    """Refuse a plan that cannot be combined with another callback.

    Raises:
        ValueError: Names the callback.
    """
    prunes = any(isinstance(callback, ModelPruning) for callback in _callbacks(trainer))
    if prunes and any(phase.entry.restore_best for phase in plan.phases):
        raise ValueError(
            "`restore_best` cannot be used beside ModelPruning, which puts masks on the weights"
            " that would come back. Leave one of them out."
        )


def refuse_changed_layers(trainer: Trainer, planned: Mapping[str, nn.Parameter]) -> None:
    """Refuse layers that hooks exchanged after the plan was made.

    Raises:
        ValueError: Says where layers may be built.
    """
    by_name = exchanges_parameters(trainer.strategy, trainer.precision_plugin)
    refuse_exchanged(planned, parameters_by_name(trainer.lightning_module), by_name=by_name)


def schedulers_of(trainer: Trainer) -> list[LRScheduler]:
    """The current learning rate schedulers: StochasticWeightAveraging replaces them in a run."""
    return [config.scheduler for config in trainer.lr_scheduler_configs]


def has_finder(trainer: Trainer) -> bool:
    """Whether the Tuner runs a trial, in which it calls no other callback."""
    return any(isinstance(c, LearningRateFinder | BatchSizeFinder) for c in _callbacks(trainer))


def has_probe(trainer: Trainer) -> bool:
    """Whether `LinearProbe` fits the head before the first epoch."""
    return any(isinstance(callback, LinearProbe) for callback in _callbacks(trainer))


def prepare_other_callbacks(trainer: Trainer) -> None:
    """Exclude frozen weights from weight averaging, such as EMAWeightAveraging's.

    Raises:
        ValueError: The optimizer needs whole tensors, but FSDP gives it flat shards.
    """
    if isinstance(trainer.strategy, FSDPStrategy):
        for optimizer in trainer.optimizers:
            refuse_non_elementwise_optimizer(optimizer)
    for callback in _callbacks(trainer):
        if isinstance(callback, WeightAveraging) and callback._average_model is not None:
            average_exactly(callback._average_model)


def _callbacks(trainer: Trainer) -> list[Callback]:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set elsewhere
    return callbacks

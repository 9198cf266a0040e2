"""What a Trainer knows of a run, for its schedule: blocks, position, length, validation."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities import rank_zero_info

from lit_finetune._errors import some_of
from lit_finetune.modules.fsdp1 import full_sizes, parameters_by_name
from lit_finetune.optim.phase_groups import PhaseGroups
from lit_finetune.schedules.messages import auxiliary_line, phase_line, user_frozen_line
from lit_finetune.schedules.plan import Plan
from lit_finetune.schedules.run_length import fit_to_length, needs_length
from lit_finetune.schedules.triggers import Position, Progress, observe, refuse_unlogged

from .compatibility import schedulers_of


def log_phase(trainer: Trainer, plan: Plan, progress: Progress) -> None:
    """Log the phase that has begun and its learning rates."""
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    full = full_sizes(trainer.model or trainer.lightning_module)
    sizes = [(full[id(p)], p.requires_grad) for p in trainer.lightning_module.parameters()]
    rank_zero_info(phase_line(plan, progress, position(trainer), sizes=sizes, groups=groups))


def log_fixed_networks(plan: Plan) -> None:
    """Log what the user froze, and the auxiliary networks, which the schedule does not change."""
    for line in filter(None, (user_frozen_line(plan), auxiliary_line(plan))):
        rank_zero_info(line)


def log_overruled(names: Sequence[str], logged: set[str]) -> None:
    """Log, once for each parameter, that the schedule overrules its `requires_grad`."""
    if new := [name for name in names if name not in logged]:
        logged.update(new)
        rank_zero_info(
            "A hook of the module, or another callback, set `requires_grad` against the schedule;"
            f" the schedule decides: {some_of(new, 3)}."
        )


def phase_groups(trainer: Trainer, plan: Plan) -> PhaseGroups:
    """The parameter groups of a run's optimizers, before its first phase."""
    return PhaseGroups(
        trainer.optimizers,
        schedulers_of(trainer),
        parameters_by_name(trainer.lightning_module),
        plan,
        lambda: trainer.global_step,
    )


def position(trainer: Trainer) -> Position:
    """The current epoch, and the number of optimizer steps so far."""
    return Position(trainer.current_epoch, trainer.global_step)


def refuse_earlier_phase(saved: int, current: int) -> None:
    """Refuse a checkpoint of an earlier phase than the Trainer's.

    Raises:
        ValueError: Says what to do.
    """
    if saved < current:
        raise ValueError(
            "The Trainer is in a later phase than the checkpoint. Resume with a new Trainer."
        )


def is_trial(trainer: Trainer) -> bool:
    """Whether the run is a trial (`fast_dev_run`)."""
    return bool(getattr(trainer, "fast_dev_run", False))  # mypy knows no such attribute


def with_length(trainer: Trainer, plan: Plan, max_epochs: int | None) -> Plan:
    """The plan, with shares of the run converted to steps; `max_epochs` is the user's."""
    if not needs_length(plan) or is_trial(trainer):
        return plan
    num_steps, epoch_steps = run_length(trainer, max_epochs)
    return fit_to_length(plan, num_steps=num_steps, epoch_steps=epoch_steps)


def run_length(trainer: Trainer, max_epochs: int | None) -> tuple[int | None, int | None]:
    """The optimizer steps of the run and of an epoch; None where they are unknown.

    Args:
        trainer: Just before training.
        max_epochs: The user's: StochasticWeightAveraging adds an epoch without training.
    """
    callbacks = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
    if any(isinstance(callback, GradientAccumulationScheduler) for callback in callbacks):
        return None, None
    if not trainer.lightning_module.automatic_optimization:
        return None, None
    num_steps, batches = trainer.estimated_stepping_batches, trainer.num_training_batches
    epoch_steps = math.ceil(batches / trainer.accumulate_grad_batches) if batches < math.inf else 0
    if epoch_steps and max_epochs is not None and max_epochs > 0:
        num_steps = min(num_steps, epoch_steps * max_epochs)
    return int(num_steps) if 0 < num_steps < math.inf else None, epoch_steps or None


def observe_validation(trainer: Trainer, plan: Plan, progress: Progress) -> Progress:
    """The progress after a validation, if the next phase waits for a metric."""
    if not (monitors := plan.monitors(progress.phase)):
        return progress
    values = monitored_values(trainer, monitors)
    if not (plateau := plan.plateau_at(progress.phase)):
        return progress
    stall = observe(progress.stall, values[plateau.monitor], plateau)
    return replace(progress, stall=stall)


def monitored_values(trainer: Trainer, monitors: Collection[str]) -> Mapping[str, float]:
    """The last validation's values of these metrics; all processes use those of rank 0.

    Raises:
        ValueError: A metric was not logged.
    """
    logged = trainer.callback_metrics
    own_values = {name: float(logged[name]) for name in monitors if name in logged}
    values = trainer.strategy.broadcast(own_values)
    refuse_unlogged(monitors, values, logged)
    return values

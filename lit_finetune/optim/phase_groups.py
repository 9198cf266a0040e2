"""The parameter groups of a run, from phase to phase of its plan."""

from collections.abc import Callable, Collection, Mapping, Sequence

from torch import nn
from torch.optim import LBFGS, Muon, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_finetune.optim.group_manager import ParamGroupManager
from lit_finetune.optim.group_warmup import Warmup, WarmupRamp
from lit_finetune.optim.options import refuse_nonfinite_options
from lit_finetune.schedules.plan import Plan
from lit_finetune.schedules.triggers import Progress


class PhaseGroups:
    """Updates the groups of all optimizers, and warms up the added ones, as a plan says.

    Args:
        optimizers: All optimizers of the run.
        schedulers: All their schedulers.
        parameters: The module's parameters by name.
        plan: The run's plan.
        current_step: Returns the number of optimizer steps of the run so far.

    Raises:
        ValueError: There is no optimizer, or one that does not support the plan.
    """

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        schedulers: Sequence[LRScheduler],
        parameters: Mapping[str, nn.Parameter],
        plan: Plan,
        current_step: Callable[[], int],
    ) -> None:
        refuse_optimizers(optimizers, num_phases=len(plan.phases))
        refuse_unaddable(optimizers, plan, parameters)
        blocks = {name: block.name for block in plan.blocks for name in block.parameters}
        self._manager = ParamGroupManager(optimizers, schedulers, parameters, blocks)
        self._warmup = Warmup(optimizers, current_step)
        self._parameters = parameters

    def move_to(
        self, index: int, plan: Plan, progress: Progress, *, norms: Collection[str]
    ) -> None:
        """Change the groups from the previous phase to the phase of this index.

        Args:
            index: Call with each index in turn, from 0 on.
            plan: The run's plan.
            progress: The run's progress, with the start of the phase.
            norms: Parameters of normalisation layers that train in frozen blocks, too.
        """
        phase = plan.phases[index]
        if index == 0:
            self._manager.start(phase.additions, sorted(set(norms) - plan.trainable(0)))
            names = list(phase.parameters)
        else:
            names = [name for part in phase.additions for name in self._manager.add(part)]
        self._manager.remove(set(phase.frozen) - set(norms))
        if steps := phase.entry.warmup_steps:
            ramp = WarmupRamp(progress.phase_starts[index].step, steps)
            self._warmup.add((self._parameters[name] for name in names), ramp)

    def set_schedulers(self, schedulers: Sequence[LRScheduler]) -> None:
        """Replace the schedulers."""
        self._manager.set_schedulers(schedulers)

    def remove(self) -> None:
        """Remove the warm-up from the optimizers, after an interrupted step as well."""
        self._warmup.remove()


def refuse_optimizers(optimizers: Sequence[Optimizer], *, num_phases: int) -> None:
    """Refuse optimizers that do not support a schedule.

    Args:
        optimizers: All optimizers of the run.
        num_phases: The number of the schedule's phases.

    Raises:
        ValueError: There is no optimizer, one that parameters cannot be added to later, or one with
            an option that is nan or infinite.
    """
    if not optimizers or not all(optimizer.param_groups for optimizer in optimizers):
        raise ValueError(
            "`configure_optimizers` returns no optimizer, so there is nothing for a schedule to"
            " train. Return an optimizer, or leave FreezeUnfreezeCallback out."
        )
    refuse_nonfinite_options(optimizers)
    if num_phases > 1 and any(isinstance(optimizer, LBFGS) for optimizer in optimizers):
        raise ValueError(
            "LBFGS supports one parameter group only: parameters that start to train later would"
            " never change. Use another optimizer, such as AdamW, or a schedule of one phase."
        )


def refuse_unaddable(
    optimizers: Sequence[Optimizer], plan: Plan, parameters: Mapping[str, nn.Parameter]
) -> None:
    """Refuse parameters that no optimizer holds, if the first optimizer does not accept them.

    Args:
        optimizers: All optimizers of the run.
        plan: The run's plan.
        parameters: The module's parameters by name.

    Raises:
        ValueError: Names the first of these parameters.
    """
    if not isinstance(optimizers[0], Muon):
        return
    held_ids = {
        id(p) for each in optimizers for group in each.param_groups for p in group["params"]
    }
    for phase in plan.phases:
        for name in phase.parameters:
            parameter = parameters.get(name)
            if parameter is not None and id(parameter) not in held_ids and parameter.ndim != 2:
                raise ValueError(
                    f"The schedule trains {name!r}, which no optimizer holds, and Muon takes"
                    " only matrices. Give the rest to an optimizer of its own, such as AdamW, with"
                    " `automatic_optimization=False`; or select only matrices."
                )

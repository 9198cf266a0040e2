"""The parameter groups of a run, brought from phase to phase of its plan."""

from collections.abc import Callable, Collection, Mapping, Sequence

from torch import nn
from torch.optim import LBFGS, Muon, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_finetune.optim.group_manager import ParamGroupManager
from lit_finetune.optim.group_warmup import Rise, Warmup
from lit_finetune.schedules.plan import Plan
from lit_finetune.schedules.triggers import Progress


class PhaseGroups:
    """Keeps the groups of all optimizers, and the warm-up of what joins them, as a plan says.

    Args:
        optimizers: All of the run.
        schedulers: All their schedulers.
        parameters: The module's, by name.
        plan: Of the run.
        step_now: How many steps the run has made.

    Raises:
        ValueError: There is no optimizer, or one that could not follow the plan.
    """

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        schedulers: Sequence[LRScheduler],
        parameters: Mapping[str, nn.Parameter],
        plan: Plan,
        step_now: Callable[[], int],
    ) -> None:
        refuse_optimizers(optimizers, num_phases=len(plan.phases))
        refuse_to_join(optimizers, plan, parameters)
        blocks = {name: block.name for block in plan.blocks for name in block.parameters}
        self._keeper = ParamGroupManager(optimizers, schedulers, parameters, blocks)
        self._warmup = Warmup(optimizers, step_now)
        self._parameters = parameters

    def move_to(
        self, index: int, plan: Plan, progress: Progress, *, norms: Collection[str]
    ) -> None:
        """Go from the phase before to the phase of this index.

        Args:
            index: Each index in turn, from 0 on.
            plan: Of the run.
            progress: It says when the phase began.
            norms: Parameters of normalisation layers that train in frozen blocks, too.
        """
        phase = plan.phases[index]
        if index == 0:
            self._keeper.start(phase.admissions, sorted(set(norms) - plan.trainable(0)))
            names = list(phase.parameters)
        else:
            names = [name for part in phase.admissions for name in self._keeper.admit(part)]
        self._keeper.remove(set(phase.frozen) - set(norms))
        if steps := phase.entry.warmup_steps:
            rise = Rise(progress.began[index].step, steps)
            self._warmup.add((self._parameters[name] for name in names), rise)

    def follow(self, schedulers: Sequence[LRScheduler]) -> None:
        """Work with these schedulers from now on."""
        self._keeper.follow(schedulers)

    def put_back(self) -> None:
        """Give the groups the rates that an interrupted step has lowered."""
        self._warmup.put_back()

    def remove(self) -> None:
        """Leave the optimizers as they would be without this."""
        self._warmup.remove()


def refuse_optimizers(optimizers: Sequence[Optimizer], *, num_phases: int) -> None:
    """Refuse optimizers that could not follow a schedule.

    Args:
        optimizers: All of the run.
        num_phases: How many phases it has.

    Raises:
        ValueError: There is none; or what starts to train later could not join it.
    """
    if not optimizers or not all(optimizer.param_groups for optimizer in optimizers):
        raise ValueError(
            "`configure_optimizers` gives no optimizer, so nothing trains that a schedule could"
            " freeze and unfreeze. Return an optimizer, or leave FreezeUnfreezeCallback out."
        )
    if num_phases > 1 and any(isinstance(optimizer, LBFGS) for optimizer in optimizers):
        raise ValueError(
            "LBFGS has one group of parameters for good: what starts to train later would never"
            " move. Use another optimizer, such as AdamW, or a schedule of one phase."
        )


def refuse_to_join(
    optimizers: Sequence[Optimizer], plan: Plan, parameters: Mapping[str, nn.Parameter]
) -> None:
    """Refuse parameters that no optimizer holds, where the first one could not take them later.

    Args:
        optimizers: All of the run.
        plan: What trains when.
        parameters: The module's, by name.

    Raises:
        ValueError: Names the first of them.
    """
    if not isinstance(optimizers[0], Muon):
        return
    held = {id(p) for each in optimizers for group in each.param_groups for p in group["params"]}
    for phase in plan.phases:
        for name in phase.parameters:
            parameter = parameters.get(name)
            if parameter is not None and id(parameter) not in held and parameter.ndim != 2:
                raise ValueError(
                    f"The schedule trains {name!r}, which no optimizer holds, and Muon takes"
                    " matrices alone. Give the rest to an optimizer of its own, such as AdamW, with"
                    " `automatic_optimization=False`; or select matrices alone."
                )

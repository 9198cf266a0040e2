"""The lines that a run logs about its phases."""

from collections.abc import Iterable, Mapping
from typing import Any

from lit_finetune._errors import some_of
from lit_finetune.schedules.plan import Plan
from lit_finetune.schedules.triggers import Position, Progress


def phase_line(
    plan: Plan,
    progress: Progress,
    position: Position,
    *,
    sizes: Iterable[tuple[int, bool]],
    groups: Iterable[Mapping[str, Any]],
) -> str:
    """The phase of a run, its number of trainable parameters, and the learning rates.

    Args:
        plan: The run's plan.
        progress: Its progress in the plan.
        position: Its epoch and step.
        sizes: For each of the network's parameters, its number of elements, and whether it trains.
        groups: The parameter groups of its optimizers.
    """
    phase = plan.phases[progress.phase]
    sizes = list(sizes)
    total, trained = sum(n for n, _ in sizes), sum(n for n, trains in sizes if trains)
    rates = {
        str(group.get("name", f"pg{index + 1}")).split("/")[0]: f"{float(group['lr']):.3g}"
        for index, group in enumerate(groups)
    }
    since = phase.entry.start_text
    if phase.entry.on_plateau:
        since = f"step {progress.phase_starts[-1].step}, {since}"
    return (
        f"Epoch {position.epoch}: training {phase.label} (since {since});"
        f" {trained:,} of {total:,} parameters train ({trained / total:.1%}). Learning rates now: "
        + ", ".join(f"{name} {rate}" for name, rate in rates.items())
    )


def unreached_line(plan: Plan, progress: Progress) -> str | None:
    """The phases that a run did not reach; None if it reached all."""
    rest = plan.phases[progress.phase + 1 :]
    names = ", ".join(f"{phase.label} ({phase.entry.start_text})" for phase in rest)
    return f"The training ended before these phases began: {names}." if rest else None


def user_frozen_line(plan: Plan) -> str | None:
    """The parameters that the user froze before the run and that stay frozen; None if none."""
    named = {name for phase in plan.phases for name in phase.parameters}
    rest = [name for block in plan.blocks for name in block.user_frozen if name not in named]
    if not rest:
        return None
    names = ", ".join(rest[:3]) + (", …" if len(rest) > 3 else "")
    return (
        f"Left frozen (requires_grad was False before the run): {len(rest)} parameters, {names}."
        " To train one, select it by its own name in the schedule."
    )


def auxiliary_line(plan: Plan) -> str | None:
    """The parameters of other networks in the module, which stay as they are; None if none."""
    if not plan.auxiliary:
        return None
    return (
        f"Left unchanged, as parts of networks other than the one that trains:"
        f" {len(plan.auxiliary)} parameters, {some_of(plan.auxiliary, 2)}."
    )

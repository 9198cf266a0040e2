"""What a run says of its phases, line by line."""

from collections.abc import Iterable, Mapping
from typing import Any

from lit_finetune._errors import some_of
from lit_finetune.schedules.plan import Plan
from lit_finetune.schedules.triggers import Position, Progress


def phase_line(
    plan: Plan,
    progress: Progress,
    here: Position,
    *,
    sizes: Iterable[tuple[int, bool]],
    groups: Iterable[Mapping[str, Any]],
) -> str:
    """Which phase a run is in, how much of the network trains, and how fast.

    Args:
        plan: Of the run.
        progress: How far it has come.
        here: Where it stands.
        sizes: How many numbers each of the network's parameters has, and whether it trains.
        groups: Those of its optimizers.
    """
    phase = plan.phases[progress.phase]
    sizes = list(sizes)
    total, trained = sum(n for n, _ in sizes), sum(n for n, trains in sizes if trains)
    rates = {
        str(group.get("name", f"pg{index + 1}")).split("/")[0]: f"{float(group['lr']):.3g}"
        for index, group in enumerate(groups)
    }
    since = phase.entry.begins
    if phase.entry.on_plateau:
        since = f"step {progress.began[-1].step}, {since}"
    return (
        f"Epoch {here.epoch}: training {phase.label} (since {since});"
        f" {trained:,} of {total:,} parameters train ({trained / total:.1%}). Learning rates now: "
        + ", ".join(f"{name} {rate}" for name, rate in rates.items())
    )


def unreached_line(plan: Plan, progress: Progress) -> str | None:
    """Which phases a run has ended before; None if it has come to all."""
    rest = plan.phases[progress.phase + 1 :]
    names = ", ".join(f"{phase.label} ({phase.entry.begins})" for phase in rest)
    return f"The training ended before these phases began: {names}." if rest else None


def user_frozen_line(plan: Plan) -> str | None:
    """Which parameters were fixed before the run and stay so; None if there are none."""
    named = {name for phase in plan.phases for name in phase.parameters}
    rest = [name for block in plan.blocks for name in block.user_frozen if name not in named]
    if not rest:
        return None
    names = ", ".join(rest[:3]) + (", …" if len(rest) > 3 else "")
    return (
        f"Fixed before by requires_grad=False, and left so: {len(rest)} parameters, {names}."
        " What the schedule names alone trains."
    )


def auxiliary_line(plan: Plan) -> str | None:
    """Which networks of the module are beside the one that trains; None if there are none."""
    if not plan.auxiliary:
        return None
    return (
        f"Left as they are, as networks beside the one that trains: {len(plan.auxiliary)}"
        f" parameters, {some_of(plan.auxiliary, 2)}."
    )

"""Check a plan against the length of a run, once this is known."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

from lit_finetune.schedules.phases import Phase
from lit_finetune.schedules.plan import Plan, PlannedPhase


def needs_length(plan: Plan) -> bool:
    """Whether a phase of the plan begins at a step, or after a fraction of the run."""
    entries = [phase.entry for phase in plan.phases]
    return any(entry.step is not None or entry.at is not None for entry in entries)


def fit_to_length(plan: Plan, *, num_steps: int | None, epoch_steps: int | None) -> Plan:
    """Compute the steps of phases that begin after a fraction of the run, and check all starts.

    Args:
        plan: A plan with phases that begin at a step, or after a fraction of all steps.
        num_steps: The number of optimizer steps in the run; None if unknown.
        epoch_steps: The number of optimizer steps in an epoch; None if unknown.

    Raises:
        ValueError: Names every problem at once: a fraction of an unknown length, a step past the
            end, a phase that would begin before the one above it.

    >>> from lit_finetune.blocks.block import Block
    >>> from lit_finetune.schedules.parse import parse_entries
    >>> from lit_finetune.schedules.plan import make_plan
    >>> entries = parse_entries([{"modules": "head"}, {"at": 0.3, "modules": "stem"}])
    >>> blocks = [Block("stem", ("a",), ("a.weight",)), Block("head", ("b",), ("b.weight",))]
    >>> plan = make_plan(entries, blocks, max_epochs=8)
    >>> fit_to_length(plan, num_steps=800, epoch_steps=100).phases[1].entry.start_text
    '30% = step 240'
    """
    phases = tuple(_with_step(phase, num_steps) for phase in plan.phases)
    entries = [phase.entry for phase in phases]
    problems = [*_problems(entries, num_steps), *_out_of_order(entries, epoch_steps)]
    if problems:
        lines = "\n  ".join(problems)
        raise ValueError(f"The schedule does not fit the length of the run:\n  {lines}")
    return replace(plan, phases=phases)


def _with_step(phase: PlannedPhase, num_steps: int | None) -> PlannedPhase:
    at = phase.entry.at
    if at is None or num_steps is None:
        return phase
    return replace(
        phase, entry=replace(phase.entry, step=min(round(at * num_steps), num_steps - 1))
    )


def _problems(entries: list[Phase], num_steps: int | None) -> Iterator[str]:
    for entry in entries:
        if entry.at is not None and num_steps is None:
            yield (
                f"{entry.start_text}: a share of an unknown number of steps. That is known when the"
                " Trainer has max_epochs or max_steps, the loader a length, and optimization is"
                " automatic, without a GradientAccumulationScheduler; or give `step` or `epoch`"
            )
        elif entry.step is not None and num_steps is not None and entry.step >= num_steps:
            last = num_steps - 1
            yield f"{entry.start_text}: never reached, the last of {num_steps} steps is step {last}"


def _out_of_order(entries: list[Phase], epoch_steps: int | None) -> Iterator[str]:
    """The phases that begin before an earlier one; units are compared by their steps."""
    starts = [
        (step, entry) for entry in entries if (step := _first_step(entry, epoch_steps)) is not None
    ]
    for (before, first), (after, second) in pairwise(starts):
        if before > after:
            yield (
                f"{second.start_text}: it comes before {first.start_text}, which stands above it"
                f" ({epoch_steps} steps are an epoch)"
            )


def _first_step(entry: Phase, epoch_steps: int | None) -> int | None:
    if entry.epoch is None:
        return entry.step
    return None if epoch_steps is None else entry.epoch * epoch_steps

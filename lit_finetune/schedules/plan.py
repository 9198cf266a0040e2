"""A schedule applied to a network's blocks: which parameters train in which phase."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_finetune.blocks.block import Block
from lit_finetune.modules.compiled import plain_name
from lit_finetune.schedules.phases import Phase, Schedule, Selection, Selector, phase_at
from lit_finetune.schedules.selectors import may_overlap, select, selects_kind
from lit_finetune.schedules.triggers import Plateau, Position, Progress, is_over


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupAddition:
    """Parameters that start to train together, by name, and their learning rate."""

    label: str
    parameters: tuple[str, ...]
    lr: float | None
    lr_scale: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedPhase:
    """From its start on, the added parameters train too, and the frozen ones no longer."""

    entry: Phase
    """Its entry in the schedule."""
    additions: tuple[GroupAddition, ...]
    frozen: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The user's selectors: `layer3, layer2`; and those that it freezes."""
        added = ", ".join(addition.label for addition in self.additions)
        frozen = ", ".join(map(str, self.entry.freezes))
        return " ".join(filter(None, [added, frozen and f"(freezes {frozen})"]))

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of all parameters that the phase adds."""
        return tuple(name for addition in self.additions for name in addition.parameters)


@dataclass(frozen=True, slots=True)
class Plan:
    """The phases of a run, and the blocks of its network."""

    phases: tuple[PlannedPhase, ...]
    blocks: tuple[Block, ...]
    auxiliary: tuple[str, ...] = ()
    """The names of the parameters of other networks in the module, which stay unchanged."""
    auxiliary_networks: tuple[str, ...] = ()
    """The names of these networks."""
    unoptimized_networks: tuple[str, ...] = ()
    """Those of them that were found by having no parameter in any optimizer."""

    def index_at(self, epoch: int, step: int = 0) -> int:
        """The index of the last phase whose epoch or step has been reached."""
        entries = [phase.entry for phase in self.phases]
        epochs = [math.inf if entry.epoch is None else entry.epoch for entry in entries]
        steps = [math.inf if entry.step is None else entry.step for entry in entries[1:]]
        return max(phase_at(epochs, epoch), phase_at([0, *steps], step))

    def next_index(self, progress: Progress, position: Position) -> int:
        """The index of the phase to continue with: the current one, or a later one that is due.

        When a phase's epoch or step has been reached, it begins, and so do all phases before it.
        """
        timed = self.index_at(position.epoch, position.step)
        plateau = self.plateau_at(progress.phase)
        if timed > progress.phase or plateau is None:
            return max(timed, progress.phase)
        epochs = position.epoch - progress.phase_starts[-1].epoch
        return progress.phase + is_over(plateau, progress.stall, epochs=epochs)

    def plateau_at(self, index: int) -> Plateau | None:
        """The metric that ends the phase of this index, if one does."""
        is_last = index + 1 == len(self.phases)
        return None if is_last else self.phases[index + 1].entry.on_plateau

    def monitors(self, index: int) -> list[str]:
        """The metrics that end the phase of this index and later ones, each once."""
        plateaus = [self.plateau_at(later) for later in range(index, len(self.phases))]
        return list(dict.fromkeys(plateau.monitor for plateau in plateaus if plateau))

    def trainable(self, index: int) -> frozenset[str]:
        """The names of the parameters that train in the phase of this index."""
        names: set[str] = set()
        for phase in self.phases[: index + 1]:
            names = (names - {*phase.frozen}) | {*phase.parameters}
        return frozenset(names)

    @property
    def user_frozen(self) -> frozenset[str]:
        """The names of the parameters that the user froze before the run."""
        return frozenset(name for block in self.blocks for name in block.user_frozen)

    def to_list(self, index: int) -> list[dict[str, Any]]:
        """The phases up to an index as plain data, for a checkpoint; the same if compiled."""
        return [_plain(phase) for phase in self.phases[: index + 1]]


def _plain(phase: PlannedPhase) -> dict[str, Any]:
    """A phase as plain data, without the values that depend on the run's length."""
    entry = phase.entry
    start: dict[str, Any] = {"epoch": entry.epoch, "at": entry.at}
    if entry.at is None:
        start["step"] = entry.step
    if entry.on_plateau:
        start["on_plateau"] = entry.on_plateau.monitor
    additions = [
        {
            "parameters": [plain_name(name) for name in a.parameters],
            "lr": a.lr,
            "lr_scale": a.lr_scale,
        }
        for a in phase.additions
    ]
    rest = {
        "freezes": [plain_name(name) for name in phase.frozen],
        "warmup_steps": entry.warmup_steps,
    }
    given = {key: value for key, value in start.items() if value is not None}
    return {**given, "admits": additions, **{key: value for key, value in rest.items() if value}}


def make_plan(schedule: Schedule, blocks: Sequence[Block], max_epochs: int | None) -> Plan:
    """Find the parameters of each phase in these blocks, and refuse a schedule that does not fit.

    Args:
        schedule: The phases, in the order of their epochs.
        blocks: The network's blocks, from the input to the head.
        max_epochs: The length of the run; None if it has no limit.

    Raises:
        ValueError: Names every problem at once: a selector that matches nothing, parameters that
            are selected twice, a phase that begins after the end or adds nothing.
    """
    problems: list[str] = []
    phases: list[PlannedPhase] = []
    trained_since: dict[str, str] = {}
    selected_by_kind: set[str] = set()
    for entry in schedule:
        entry_problems: list[str] = []
        if max_epochs is not None and entry.epoch is not None and entry.epoch >= max_epochs:
            last = max_epochs - 1
            entry_problems.append(
                f"never reached, the last of max_epochs={max_epochs} is epoch {last}"
            )
        phase, more = _plan_phase(entry, blocks, trained_since, selected_by_kind)
        phases.append(phase)
        problems += [f"{entry.start_text}: {text}" for text in (*entry_problems, *more)]
    if problems:
        have = ", ".join(block.name for block in blocks)
        lines = "\n  ".join(problems)
        raise ValueError(
            f"The schedule does not fit the network and the run:\n  {lines}\nBlocks: {have}."
        )
    return Plan(tuple(phases), tuple(blocks))


def _plan_phase(
    entry: Phase, blocks: Sequence[Block], trained_since: dict[str, str], selected_by_kind: set[str]
) -> tuple[PlannedPhase, list[str]]:
    """The planned phase of an entry after those before it, and the entry's problems.

    Args:
        entry: The schedule's entry.
        blocks: The network's blocks.
        trained_since: The start of each parameter that trains, in words; updated.
        selected_by_kind: Those of them that were selected by kind (norms, biases), whose blocks may
            be selected later; updated.
    """
    frozen, problems = _select_frozen(entry.freezes, blocks, trained_since)
    additions: list[GroupAddition] = []
    for selection in entry.adds:
        found, entry_problems = _resolve(
            selection, blocks, trained_since, selected_by_kind, start_text=entry.start_text
        )
        problems += entry_problems
        label = ", ".join(map(str, selection.modules))
        additions.append(
            GroupAddition(
                label=label, parameters=found, lr=selection.lr, lr_scale=selection.lr_scale
            )
        )
    for name in frozen:
        del trained_since[name]
    selected_by_kind.difference_update(frozen)
    if not trained_since and not problems:
        problems.append("nothing would train from then on")
    return PlannedPhase(entry=entry, additions=tuple(additions), frozen=frozen), problems


def _resolve(
    selection: Selection,
    blocks: Sequence[Block],
    trained_since: dict[str, str],
    selected_by_kind: set[str],
    *,
    start_text: str,
) -> tuple[tuple[str, ...], list[str]]:
    """The parameters of a selection, which are added to `trained_since`, and its problems."""
    found: list[str] = []
    problems: list[str] = []
    for selector in selection.modules:
        try:
            names = select(selector, blocks)
        except ValueError as error:
            problems.append(str(error))
            continue
        overlapping = [name for name in names if name in trained_since]
        new = [name for name in names if name not in trained_since]
        # `all` selects the remaining parameters; any other overlap is a mistake in the schedule,
        # except for norms or biases of a block that train before the rest of it.
        if (
            not new
            and may_overlap(selector)
            and (remaining := _untrained_user_frozen(blocks, trained_since))
        ):
            problems.append(
                f"{selector!r} adds nothing: the parameters that do not train yet had"
                f" requires_grad=False before the run, such as {remaining[0]!r}. Select it by name"
            )
        elif not new or not (may_overlap(selector) or selected_by_kind.issuperset(overlapping)):
            extent = (
                "all of it trains" if not new else f"{len(overlapping)} of its parameters train"
            )
            problems.append(
                f"{selector!r} overlaps: {extent} from {trained_since[overlapping[0]]} on, such as"
                f" {overlapping[0]!r}. Select each part once, or the rest with 'all'"
            )
        trained_since.update(dict.fromkeys(new, start_text))
        selected_by_kind.update(new if selects_kind(selector) else ())
        found += new
    return tuple(found), problems


def _untrained_user_frozen(blocks: Sequence[Block], trained_since: Mapping[str, str]) -> list[str]:
    """The parameters that the user froze before the run and that do not train."""
    return [name for block in blocks for name in block.user_frozen if name not in trained_since]


def _select_frozen(
    selectors: Sequence[Selector], blocks: Sequence[Block], trained_since: Mapping[str, str]
) -> tuple[tuple[str, ...], list[str]]:
    """The parameters that the selectors freeze, and the problems with them."""
    found: dict[str, None] = {}
    problems: list[str] = []
    for selector in selectors:
        try:
            names = select(selector, blocks)
        except ValueError as error:
            problems.append(f"`freeze`: {error}")
            continue
        training = [name for name in names if name in trained_since]
        if not training:
            problems.append(f"`freeze`: nothing of {selector!r} trains by then")
        found.update(dict.fromkeys(training))
    return tuple(found), problems


def format_plan(plan: Plan, sizes: Mapping[str, int]) -> str:
    """The plan as a table: start, added blocks, number of trainable parameters and its share.

    Args:
        plan: The plan.
        sizes: The number of elements of each of the network's parameters, by name.

    >>> from lit_finetune.schedules.phases import parse_schedule
    >>> blocks = [Block("stem", ("a",), ("a.weight",)), Block("head", ("b",), ("b.weight",))]
    >>> plan = make_plan(parse_schedule({0: "head", 3: "all"}), blocks, max_epochs=4)
    >>> print(format_plan(plan, {"a.weight": 3000, "b.weight": 1000}))
    epoch  starts to train  trainable  share
        0  head                 1,000  25.0%
        3  all                  4,000  100.0%
    """
    total = sum(sizes.values())
    labels = [phase.label for phase in plan.phases]
    width = max(len("starts to train"), *map(len, labels))
    entries = [phase.entry for phase in plan.phases]
    if all(entry.epoch is not None for entry in entries):
        whens = ["epoch", *(f"{entry.epoch:>5}" for entry in entries)]
    else:
        words = ["begins", *(entry.start_text for entry in entries)]
        whens = [f"{text:<{max(map(len, words))}}" for text in words]
    lines = [f"{whens[0]}  {'starts to train':<{width}}  trainable  share"]
    for index, when in enumerate(whens[1:]):
        count = sum(sizes[name] for name in plan.trainable(index))
        lines.append(f"{when}  {labels[index]:<{width}}  {count:>9,}  {count / total:.1%}")
    return "\n".join(lines)

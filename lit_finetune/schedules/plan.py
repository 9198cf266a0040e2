"""A schedule held against a network's blocks: which parameters train in which phase."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_finetune.blocks.block import Block
from lit_finetune.modules.compiled import plain_name
from lit_finetune.schedules.phases import Phase, Schedule, Selection, Selector, phase_at
from lit_finetune.schedules.selectors import means_the_rest, of_a_kind, select
from lit_finetune.schedules.triggers import Plateau, Position, Progress, is_over


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupAddition:
    """Parameters that start to train together, by name, and how fast."""

    label: str
    parameters: tuple[str, ...]
    lr: float | None
    lr_scale: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedPhase:
    """From its beginning on, the admitted parameters train too, and the frozen ones no longer."""

    entry: Phase
    """What the schedule says of it."""
    admissions: tuple[GroupAddition, ...]
    frozen: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """What the user called it: `layer3, layer2`; and what it freezes."""
        added = ", ".join(admission.label for admission in self.admissions)
        stopped = ", ".join(map(str, self.entry.freezes))
        return " ".join(filter(None, [added, stopped and f"(freezes {stopped})"]))

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of all parameters that this phase adds."""
        return tuple(name for admission in self.admissions for name in admission.parameters)


@dataclass(frozen=True, slots=True)
class Plan:
    """The phases of a run, and the blocks that they speak of."""

    phases: tuple[PlannedPhase, ...]
    blocks: tuple[Block, ...]
    auxiliary: tuple[str, ...] = ()
    """The names of parameters of other networks in the module, which are left as they are."""
    networks_beside: tuple[str, ...] = ()
    """The names of these networks."""
    left_out: tuple[str, ...] = ()
    """Those of them that were told by the optimizers, which hold nothing of them."""

    def index_at(self, epoch: int, step: int = 0) -> int:
        """The index of the last phase whose epoch or step has come."""
        entries = [phase.entry for phase in self.phases]
        epochs = [math.inf if entry.epoch is None else entry.epoch for entry in entries]
        steps = [math.inf if entry.step is None else entry.step for entry in entries[1:]]
        return max(phase_at(epochs, epoch), phase_at([0, *steps], step))

    def next_index(self, progress: Progress, here: Position) -> int:
        """The index of the phase to go on with: the present one, or a later one that is due.

        A phase whose epoch or step has come begins, and with it whatever stands before it.
        """
        timed = self.index_at(here.epoch, here.step)
        plateau = self.watched(progress.phase)
        if timed > progress.phase or plateau is None:
            return max(timed, progress.phase)
        epochs = here.epoch - progress.began[-1].epoch
        return progress.phase + is_over(plateau, progress.stall, epochs=epochs)

    def watched(self, index: int) -> Plateau | None:
        """The metric that ends the phase of this index, if one does."""
        is_last = index + 1 == len(self.phases)
        return None if is_last else self.phases[index + 1].entry.on_plateau

    def monitors(self, index: int) -> list[str]:
        """The metrics that end the phase of this index and later ones, each once."""
        watched = [self.watched(later) for later in range(index, len(self.phases))]
        return list(dict.fromkeys(plateau.monitor for plateau in watched if plateau))

    def trainable(self, index: int) -> frozenset[str]:
        """The names of the parameters that train in the phase of this index."""
        names: set[str] = set()
        for phase in self.phases[: index + 1]:
            names = (names - {*phase.frozen}) | {*phase.parameters}
        return frozenset(names)

    @property
    def user_frozen(self) -> frozenset[str]:
        """The names of the parameters that were fixed before any schedule came."""
        return frozenset(name for block in self.blocks for name in block.user_frozen)

    def to_list(self, index: int) -> list[dict[str, Any]]:
        """The phases up to an index as plain data, for a checkpoint; compiled or not the same."""
        return [_plain(phase) for phase in self.phases[: index + 1]]


def _plain(phase: PlannedPhase) -> dict[str, Any]:
    """What a phase is, as plain data, without what a longer run would change."""
    entry = phase.entry
    begins: dict[str, Any] = {"epoch": entry.epoch, "at": entry.at}
    if entry.at is None:
        begins["step"] = entry.step
    if entry.on_plateau:
        begins["on_plateau"] = entry.on_plateau.monitor
    admits = [
        {
            "parameters": [plain_name(name) for name in a.parameters],
            "lr": a.lr,
            "lr_scale": a.lr_scale,
        }
        for a in phase.admissions
    ]
    rest = {
        "freezes": [plain_name(name) for name in phase.frozen],
        "warmup_steps": entry.warmup_steps,
    }
    given = {key: value for key, value in begins.items() if value is not None}
    return {**given, "admits": admits, **{key: value for key, value in rest.items() if value}}


def make_plan(schedule: Schedule, blocks: Sequence[Block], max_epochs: int | None) -> Plan:
    """Find what a schedule means for these blocks, and refuse one that cannot be followed.

    Args:
        schedule: The phases, in the order of their epochs.
        blocks: The network's blocks, from the input to the head.
        max_epochs: The length of the run; None where it has no limit.

    Raises:
        ValueError: Names every problem at once: a selector that matches nothing, parameters that
            are selected twice, a phase that begins after the end or adds nothing.
    """
    problems: list[str] = []
    phases: list[PlannedPhase] = []
    taken: dict[str, str] = {}
    loose: set[str] = set()
    for entry in schedule:
        trouble: list[str] = []
        if max_epochs is not None and entry.epoch is not None and entry.epoch >= max_epochs:
            last = max_epochs - 1
            trouble.append(f"never reached, the last of max_epochs={max_epochs} is epoch {last}")
        phase, more = _plan_phase(entry, blocks, taken, loose)
        phases.append(phase)
        problems += [f"{entry.begins}: {text}" for text in (*trouble, *more)]
    if problems:
        have = ", ".join(block.name for block in blocks)
        lines = "\n  ".join(problems)
        raise ValueError(
            f"The schedule does not fit the network and the run:\n  {lines}\nBlocks: {have}."
        )
    return Plan(tuple(phases), tuple(blocks))


def _plan_phase(
    entry: Phase, blocks: Sequence[Block], taken: dict[str, str], loose: set[str]
) -> tuple[PlannedPhase, list[str]]:
    """What an entry means after those before it, and what is wrong with it.

    Args:
        entry: Of the schedule.
        blocks: The network's.
        taken: When each parameter that trains has begun to; brought up to date.
        loose: Those of them that were selected by their kind (norms, biases), which the block
            that they are in may follow; brought up to date.
    """
    frozen, problems = _stopped(entry.freezes, blocks, taken)
    admissions: list[GroupAddition] = []
    for selection in entry.adds:
        found, trouble = _resolve(selection, blocks, taken, loose, begins=entry.begins)
        problems += trouble
        label = ", ".join(map(str, selection.modules))
        admissions.append(
            GroupAddition(
                label=label, parameters=found, lr=selection.lr, lr_scale=selection.lr_scale
            )
        )
    for name in frozen:
        del taken[name]
    loose.difference_update(frozen)
    if not taken and not problems:
        problems.append("nothing would train from then on")
    return PlannedPhase(entry=entry, admissions=tuple(admissions), frozen=frozen), problems


def _resolve(
    selection: Selection,
    blocks: Sequence[Block],
    taken: dict[str, str],
    loose: set[str],
    *,
    begins: str,
) -> tuple[tuple[str, ...], list[str]]:
    """The parameters of a selection, which become taken, and what is wrong with it."""
    found: list[str] = []
    problems: list[str] = []
    for selector in selection.modules:
        try:
            names = select(selector, blocks)
        except ValueError as error:
            problems.append(str(error))
            continue
        twice = [name for name in names if name in taken]
        new = [name for name in names if name not in taken]
        # `all` means what is left; anything else that is named twice is a mistake in the schedule,
        # but for the norms or biases of a block that train before the rest of it.
        if not new and means_the_rest(selector) and (left := _left_still(blocks, taken)):
            problems.append(
                f"{selector!r} adds nothing: what does not train yet has been fixed before, by"
                f" requires_grad=False, such as {left[0]!r}. Name it to train it"
            )
        elif not new or not (means_the_rest(selector) or loose.issuperset(twice)):
            what = "all of it trains" if not new else f"{len(twice)} of its parameters train"
            problems.append(
                f"{selector!r} overlaps: {what} from {taken[twice[0]]} on, such as {twice[0]!r}."
                " Select each part once, or the rest with 'all'"
            )
        taken.update(dict.fromkeys(new, begins))
        loose.update(new if of_a_kind(selector) else ())
        found += new
    return tuple(found), problems


def _left_still(blocks: Sequence[Block], taken: Mapping[str, str]) -> list[str]:
    """The parameters that were fixed before any schedule came, and do not train."""
    return [name for block in blocks for name in block.user_frozen if name not in taken]


def _stopped(
    selectors: Sequence[Selector], blocks: Sequence[Block], taken: Mapping[str, str]
) -> tuple[tuple[str, ...], list[str]]:
    """The parameters that train and are to be frozen, and what is wrong with that."""
    found: dict[str, None] = {}
    problems: list[str] = []
    for selector in selectors:
        try:
            names = select(selector, blocks)
        except ValueError as error:
            problems.append(f"`freeze`: {error}")
            continue
        training = [name for name in names if name in taken]
        if not training:
            problems.append(f"`freeze`: nothing of {selector!r} trains by then")
        found.update(dict.fromkeys(training))
    return tuple(found), problems


def format_plan(plan: Plan, sizes: Mapping[str, int]) -> str:
    """The plan as a table: when, what starts to train, trainable parameters and their share.

    Args:
        plan: What is planned.
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
        words = ["begins", *(entry.begins for entry in entries)]
        whens = [f"{text:<{max(map(len, words))}}" for text in words]
    lines = [f"{whens[0]}  {'starts to train':<{width}}  trainable  share"]
    for index, when in enumerate(whens[1:]):
        count = sum(sizes[name] for name in plan.trainable(index))
        lines.append(f"{when}  {labels[index]:<{width}}  {count:>9,}  {count / total:.1%}")
    return "\n".join(lines)

"""A schedule held against a network's blocks: which parameters train from which epoch on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_finetune.blocks import Block
from lit_finetune.compiled import plain_name
from lit_finetune.schedule import Schedule, Selection, phase_at
from lit_finetune.selectors import select


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """Parameters that start to train together, by name, and how fast."""

    label: str
    parameters: tuple[str, ...]
    lr: float | None
    lr_scale: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedPhase:
    """From the start of `epoch` on, the admitted parameters train too."""

    epoch: int
    admissions: tuple[Admission, ...]

    @property
    def label(self) -> str:
        """What the user called it: `layer3, layer2`."""
        return ", ".join(admission.label for admission in self.admissions)

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of all parameters that this phase adds."""
        return tuple(name for admission in self.admissions for name in admission.parameters)


@dataclass(frozen=True, slots=True)
class Plan:
    """The phases of a run, and the blocks that they speak of."""

    phases: tuple[PlannedPhase, ...]
    blocks: tuple[Block, ...]

    def index_at(self, epoch: int) -> int:
        """The index of the phase in force at an epoch."""
        return phase_at([phase.epoch for phase in self.phases], epoch)

    def trainable(self, index: int) -> frozenset[str]:
        """The names of the parameters that train in the phase of this index."""
        return frozenset(name for phase in self.phases[: index + 1] for name in phase.parameters)

    def to_list(self, index: int) -> list[dict[str, Any]]:
        """The phases up to an index as plain data, for a checkpoint; compiled or not the same."""
        return [
            {
                "epoch": phase.epoch,
                "admits": [
                    {
                        "parameters": [plain_name(name) for name in a.parameters],
                        "lr": a.lr,
                        "lr_scale": a.lr_scale,
                    }
                    for a in phase.admissions
                ],
            }
            for phase in self.phases[: index + 1]
        ]


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
    taken: dict[str, int] = {}
    for phase in schedule:
        where = f"epoch {phase.epoch}"
        if max_epochs is not None and phase.epoch >= max_epochs:
            last = max_epochs - 1
            problems.append(
                f"{where}: never reached, the last of max_epochs={max_epochs} is epoch {last}"
            )
        admissions: list[Admission] = []
        for selection in phase.adds:
            found, trouble = _resolve(selection, blocks, taken, phase.epoch)
            problems += [f"{where}: {text}" for text in trouble]
            label = ", ".join(map(str, selection.modules))
            admissions.append(
                Admission(
                    label=label, parameters=found, lr=selection.lr, lr_scale=selection.lr_scale
                )
            )
        phases.append(PlannedPhase(epoch=phase.epoch, admissions=tuple(admissions)))
    if problems:
        have = ", ".join(block.name for block in blocks)
        lines = "\n  ".join(problems)
        raise ValueError(
            f"The schedule does not fit the network and the run:\n  {lines}\nBlocks: {have}."
        )
    return Plan(tuple(phases), tuple(blocks))


def _resolve(
    selection: Selection, blocks: Sequence[Block], taken: dict[str, int], epoch: int
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
        # `all` means what is left; anything else that is named twice is a mistake in the schedule.
        if not new or (twice and str(selector).strip() != "all"):
            since = min(taken[name] for name in twice)
            what = "all of it trains" if not new else f"{len(twice)} of its parameters train"
            problems.append(
                f"{selector!r} overlaps: {what} from epoch {since} on, such as {twice[0]!r}."
                " Select each part once, or the rest with 'all'"
            )
        taken.update(dict.fromkeys(new, epoch))
        found += new
    return tuple(found), problems


def format_plan(plan: Plan, sizes: Mapping[str, int]) -> str:
    """The plan as a table: epoch, what starts to train, trainable parameters and their share.

    Args:
        plan: What is planned.
        sizes: The number of elements of each of the network's parameters, by name.

    >>> from lit_finetune.schedule import parse_schedule
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
    lines = [f"epoch  {'starts to train':<{width}}  trainable  share"]
    for index, phase in enumerate(plan.phases):
        count = sum(sizes[name] for name in plan.trainable(index))
        lines.append(
            f"{phase.epoch:>5}  {labels[index]:<{width}}  {count:>9,}  {count / total:.1%}"
        )
    return "\n".join(lines)

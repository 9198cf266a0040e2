"""Results as a page of Markdown."""

import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from os import cpu_count

from benchmarks.peers.isolation import Outcome
from benchmarks.peers.situations import SCHEDULER_SITUATIONS, SITUATIONS, Situation
from benchmarks.peers.systems import SYSTEMS, version_of

Results = dict[tuple[str, str], list[Outcome]]
"""The outcome of each question, by the names of situation and system."""

_PAGE = """\
# Is it right? This project beside its peers

<!-- Written by `python -m benchmarks.peers.correctness`: change that, not this. -->

The same tiny network (two blocks of convolution, BatchNorm and dropout, then a head) is trained
on the same batches with each system: the head from epoch 0 on, block 2 from epoch 1, block 1 from
epoch 2, the backbone at a tenth of the head's rate. A row asks for one thing that a user takes for
granted. **Every figure is a distance from what is right, so 0 is right.** All of them are measured:
a peer that gets better turns right at the next run.

*wrong*: nothing was raised, and the figure says how far off it was. *crashes*: an error after
training had begun. *not offered*: the system says, before the first step, that it does not do
this. The errors stand below the tables.

{machine}
Command: `python -m benchmarks.peers.correctness`; it took {seconds:.0f} seconds.

{tables}

## How each system was used

{usage}
"""


def as_markdown(results: Results, seconds: float) -> str:
    """The whole page."""
    return _PAGE.format(
        machine=machine(), seconds=seconds, tables=tables(results), usage=usage(results)
    )


def tables(results: Results) -> str:
    """The tables of verdicts, and the errors that were raised."""
    parts = {
        "Unfreezing": table(results, SITUATIONS),
        "The backbone keeps a tenth of the head's rate under every scheduler of torch": table(
            results, SCHEDULER_SITUATIONS
        ),
        "What was raised": errors(results),
    }
    return "\n\n".join(f"## {title}\n\n{text}" for title, text in parts.items() if text)


def table(results: Results, situations: Iterable[Situation]) -> str:
    """A row for each question, a column for each system, how many are right; or nothing."""
    names = system_names(results)
    rows = [["What should hold", "Measured", *names], ["---"] * (2 + len(names))]
    outcomes: list[list[Outcome]] = []
    for situation in situations:
        if (situation.name, names[0]) in results:
            columns = [results[situation.name, name] for name in names]
            for question, *row in zip(situation.questions, *columns, strict=True):
                rows.append([question.text, question.figure, *map(cell, row)])
                outcomes.append(row)
    if not outcomes:
        return ""
    rows.append(["**right**", "", *(share(column) for column in zip(*outcomes, strict=True))])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def cell(outcome: Outcome) -> str:
    """A verdict, with the figure where it is not 0.

    >>> cell(Outcome("right", 0.0)), cell(Outcome("wrong", 3.0)), cell(Outcome("wrong", 0.0123))
    ('right', '**wrong**: 3', '**wrong**: 0.012')
    """
    if outcome.verdict == "wrong" and outcome.figure is not None:
        return f"**wrong**: {outcome.figure:.2g}"
    return "**crashes**" if outcome.verdict == "crashes" else outcome.verdict


def share(column: Iterable[Outcome]) -> str:
    """How many of the outcomes are right."""
    verdicts = [outcome.verdict for outcome in column]
    if set(verdicts) == {"not installed"}:
        return "not installed"
    return f"{verdicts.count('right')} of {len(verdicts)}"


def errors(results: Results) -> str:
    """Each error once, with the systems and situations that ended in it."""
    where: dict[tuple[str, str, str], list[str]] = {}
    for (situation, system), outcomes in results.items():
        for outcome in outcomes:
            if outcome.message:
                places = where.setdefault((system, outcome.verdict, outcome.message), [])
                if situation not in places:
                    places.append(situation)
    lines = [
        f"- {system}, {', '.join(f'`{place}`' for place in places)} ({verdict}): {as_text(message)}"
        for (system, verdict, message), places in sorted(where.items())
    ]
    return "\n".join(lines)


def as_text(message: str) -> str:
    """A message as code, whatever stands in it."""
    return f"`{message.replace('`', chr(39))}`"


def usage(results: Results) -> str:
    """How each system was used, and which version of it."""
    names = system_names(results)
    return "\n".join(
        f"- **{system.name}** ({version_of(system) or 'not installed'}): {system.usage}"
        for system in SYSTEMS
        if system.name in names
    )


def system_names(results: Mapping[tuple[str, str], object]) -> list[str]:
    """The systems that were asked, in the order of their columns."""
    return list(dict.fromkeys(system for _, system in results))


def machine() -> str:
    """Where it was measured."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning"))
    place = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    return f"Measured with {versions}, {place}, {cpu_count()} CPU cores."

"""What was found, as a page of Markdown."""

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version

from benchmarks.backbones.exact import LARGE
from benchmarks.backbones.examine import CHECKS, NUM_CLASSES, Finding

_PAGE = """\
# Which backbones work

<!-- Written by `python -m benchmarks.backbones`: change that, not this. -->

Every classifier of each library was built for {num_classes} classes, without the library's weights,
and put to the same checks; a figure says how many of a family's names passed. All of it is
measured, with {versions}; the splits on real tensors, the rest on tensors without data.

{summary}

* **built**: `FinetuneClassifier` can be made from the name.
* **head**: every head, with those that work together and the last layers of auxiliary ones, gives
  a score for each of the classes, the logits have the right shape, and no other tensor of the
  network changed its shape.
* **num_features**: as many features reach each head, when the network runs, as its layer takes;
  and what reaches the library's classifier is what the library says (`head_hidden_size` of timm).
* **blocks in order**: every parameter is in exactly one block, the head is the last, and when the
  network runs, each block is first used after the one before it.
* **forward and backward**: in training the network gives logits and a loss, with that of auxiliary
  heads, and the loss has a gradient for the parameters; those that it has none for are named.
* **split**: the network can be run up to its middle block, and up to its head, and from there on.
  Where it cannot, it can be fine-tuned all the same, and the list below says why it cannot.
* **same bits**: the logits of the two halves are those of the whole network to the last bit,
  wherever it can be split; in bfloat16 for networks of {large} million parameters or more.
* **data config**: size, mean, deviation, interpolation and the way of cropping are the library's.

{tables}
"""


def as_markdown(findings: Mapping[str, Sequence[Finding]]) -> str:
    """The whole page; the findings by the title of their source."""
    return _PAGE.format(
        num_classes=NUM_CLASSES,
        large=LARGE // 10**6,
        versions=", ".join(f"{name} {version(name)}" for name in ("torch", *findings))
        + f", Python {platform.python_version()}",
        summary="\n".join(_summary(title, found) for title, found in findings.items()),
        tables="\n\n".join(_section(title, found) for title, found in findings.items()),
    )


def _summary(title: str, findings: Sequence[Finding]) -> str:
    buildable = [finding for finding in findings if not finding.cannot_be_built]
    works = sum(works_but_for_split(finding) for finding in buildable)
    counts = [_num_wrong(buildable, check) for check in ("num_features", "data config")]
    compared = [finding for finding in buildable if finding.problems.get("same bits") is not None]
    differ = _num_wrong(compared, "same bits")
    return (
        f"* **{title}**: {works} of {len(buildable)} names that can be built work "
        f"({works / max(1, len(buildable)):.1%}); {counts[0]} differences in the number of "
        f"features, {_differences(buildable, counts[1])} in the data config; {len(compared)} can "
        f"be split, {differ} of which give other bits then."
    )


def _differences(findings: Sequence[Finding], count: int) -> str:
    is_known = any(finding.problems.get("data config") is not None for finding in findings)
    return str(count) if is_known else "none to be compared"


def works_but_for_split(finding: Finding) -> bool:
    """Whether it can be fine-tuned; a network that is no chain may be, and cannot be split."""
    wrong = [check for check, problem in finding.problems.items() if problem]
    return not finding.cannot_be_built and not [check for check in wrong if check != "split"]


def _num_wrong(findings: Sequence[Finding], check: str) -> int:
    return sum(bool(finding.problems.get(check)) for finding in findings)


def _section(title: str, findings: Sequence[Finding]) -> str:
    families: dict[str, list[Finding]] = {}
    for finding in findings:
        families.setdefault(finding.family, []).append(finding)
    rows = [_row(family, found) for family, found in sorted(families.items())]
    header = f"| family | names | {' | '.join(CHECKS)} | blocks | what is special |"
    line = "|---" * (len(CHECKS) + 4) + "|"
    problems = [_problem(finding) for finding in findings]
    problems += [_not_split(family, found) for family, found in sorted(families.items())]
    told = "\n".join(text for text in problems if text) or "Nothing."
    return "\n".join(
        [
            f"## {title}",
            "",
            header,
            line,
            *rows,
            "",
            f"### What does not work in {title}, and why",
            "",
            told,
        ]
    )


def _row(family: str, findings: Sequence[Finding]) -> str:
    cells = [_cell(findings, check) for check in CHECKS]
    counts = sorted({finding.num_blocks for finding in findings if finding.num_blocks})
    blocks = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else "".join(map(str, counts))
    notes = "; ".join(dict.fromkeys(note for finding in findings for note in finding.notes))
    return f"| {family} | {len(findings)} | {' | '.join(cells)} | {blocks} | {notes} |"


def _cell(findings: Sequence[Finding], check: str) -> str:
    examined = [f for f in findings if f.problems.get(check) is not None]
    if not examined and any(f.problems.get("built") == "" for f in findings):
        return "nothing to compare"
    right = sum(not finding.problems[check] for finding in examined)
    count = len(examined if check == "same bits" else findings)
    return "all" if right == count else f"{right} of {count}"


def _problem(finding: Finding) -> str:
    if finding.cannot_be_built:
        return f"* `{finding.name}`: the library cannot build it: {finding.cannot_be_built}"
    wrong = [
        f"{check}: {problem}"
        for check, problem in finding.problems.items()
        if problem and check != "split"
    ]
    return f"* `{finding.name}`: {'; '.join(wrong)}" if wrong else ""


def _not_split(family: str, findings: Sequence[Finding]) -> str:
    """Why names of a family cannot be split, as the first of them says it."""
    reasons = [problem for finding in findings if (problem := finding.problems.get("split"))]
    if not reasons:
        return ""
    return f"* {family}, {len(reasons)} of {len(findings)} names, split: {reasons[0]}"

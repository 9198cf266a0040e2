"""A table of the number of images of each class."""

from collections.abc import Mapping

from lit_finetune.files.terminal_text import printable

MAX_ROWS = 20


def count_table(counts: Mapping[str, Mapping[str, int]]) -> str:
    """The number of images of each class in each part; of many classes the smallest and largest.

    >>> print(count_table({"train": {"ants": 123, "bees": 121}, "val": {"ants": 70, "bees": 83}}))
    class  train  val
    ants     123   70
    bees     121   83
    all 2    244  153
    """
    first = next(iter(counts.values()))
    classes = list(first)
    if len(classes) > MAX_ROWS:
        by_size = sorted(classes, key=lambda name: first[name])
        classes = [*by_size[:3], "...", *by_size[-3:]]
    rows = [["class", *counts]]
    rows += [
        [printable(name), *(str(part.get(name, "")) for part in counts.values())]
        for name in classes
    ]
    rows += [[f"all {len(first)}", *(str(sum(part.values())) for part in counts.values())]]
    return align_columns(rows)


def align_columns(rows: list[list[str]]) -> str:
    """Rows as columns of equal width: names aligned to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *numbers in rows:
        cells = [n.rjust(width) for n, width in zip(numbers, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *cells]))
    return "\n".join(lines)

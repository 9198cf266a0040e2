"""Run every benchmark, one after the other, and write the table of docs/performance.md.

Run it on a machine with nothing else to do; it takes the better part of an hour on two cores.

    LIT_FINETUNE_DATA=… python -m benchmarks.performance
"""

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import Comparison, machine

ROOT = Path(__file__).parents[1]
SCRIPTS = {
    "frozen": "Epochs in which part of the network is frozen",
    "step_overhead": "What a training step costs",
    "input_cifar": "Small pictures, from memory to the network",
    "input_folder": "Photographs, from the second epoch on",
    "unfreeze": "The moment of unfreezing",
    "ddp_phases": "Two processes",
    "memory": "Memory",
    "gpu": "On a GPU",
}
PAGE = """# Performance

What the caches, the probe and the loaders save, measured beside what people use today. Both sides
run in turn in one process tree; the table shows medians. It was written on {date} by

```bash
{command}
```

on {machine}.

{tables}
"""


def main() -> None:
    """Run the scripts that were asked for, all if none was, and write the page."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("scripts", nargs="*", choices=[*SCRIPTS, []], default=[])
    arguments.add_argument(
        "--figures", type=Path, help="a folder of figures; those of a script that are there stay"
    )
    arguments.add_argument("--out", type=Path, default=ROOT / "docs/performance.md")
    given = arguments.parse_args()
    scripts = given.scripts or list(SCRIPTS)
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.figures or Path(temporary)
        folder.mkdir(exist_ok=True)
        tables = [
            section(script, measure(script, folder / f"{script}.jsonl")) for script in scripts
        ]
    reused = ["--figures FOLDER"] if given.figures else []
    command = " ".join(["python -m benchmarks.performance", *given.scripts, *reused])
    page = PAGE.format(
        date=datetime.date.today(), command=command, machine=machine(), tables="\n\n".join(tables)
    )
    given.out.write_text(page + remarks(given.out), encoding="utf-8")
    print(f"Written: {given.out}")


def remarks(page: Path) -> str:
    """What somebody has written below the tables, which stays."""
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    _, heading, rest = text.partition("\n## What to make of it\n")
    return heading + rest


def measure(script: str, out: Path) -> list[Comparison]:
    """What a script measures, or has measured before."""
    if not out.exists():
        command = [sys.executable, "-W", "ignore", "-m", f"benchmarks.{script}", "--out", str(out)]
        subprocess.run(command, cwd=ROOT, check=True)
    lines = out.read_text(encoding="utf-8").splitlines() if out.exists() else []
    return [Comparison(**json.loads(line)) for line in lines]


def section(script: str, rows: Sequence[Comparison]) -> str:
    """A heading and a table."""
    head = f"## {SCRIPTS[script]}\n\n`python -m benchmarks.{script}`\n\n"
    if not rows:
        return f"{head}Not measured: this machine has not what it needs."
    lines = ["| what | beside | ours | theirs | ratio | goal | |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        verdict = "reached" if row.is_reached else "**not reached**"
        figures = f"{row.ours:.4g} | {row.theirs:.4g} | {row.ratio:.3g}"
        what = f"{row.what} ({row.remark})" if row.remark else row.what
        lines.append(f"| {what} | {row.peer} | {figures} | {row.goal} | {verdict} |")
    return head + "\n".join(lines)


if __name__ == "__main__":
    main()

"""Put every classifier of the libraries to the test, and write `docs/backbones.md`.

python -m benchmarks.backbones --sources torchvision timm --output docs/backbones.md

It takes an hour or two. With `--results`, what is known already is not examined again: a run that
was stopped goes on, and several can share the names by `--part 1/2`.
"""

import argparse
import gc
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path

from benchmarks.backbones.examine import Finding, examine
from benchmarks.backbones.sources import SOURCES, Source
from benchmarks.backbones.table import as_markdown, works_but_for_split


def main() -> None:
    """Examine, tell, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=list(SOURCES))
    parser.add_argument("--names", default="*", help="a pattern that the names must match")
    parser.add_argument("--output", type=Path, help="where to write the page")
    parser.add_argument("--results", type=Path, help="a file of what was found before; it grows")
    parser.add_argument("--part", default="1/1", help="which part of the names: 2/3 is every third")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    findings = {}
    for key in arguments.sources:
        source = SOURCES[key]()
        number, parts = map(int, arguments.part.split("/"))
        names = [name for name in source.names() if fnmatch(name, arguments.names)]
        names = names[number - 1 :: parts]
        findings[source.title] = list(find(source, names, arguments.results))
        works = sum(map(works_but_for_split, findings[source.title]))
        print(f"{source.title}: {works} of {len(findings[source.title])} work")
    if arguments.output:
        arguments.output.write_text(as_markdown(findings), encoding="utf-8")


def find(source: Source, names: Sequence[str], results: Path | None) -> Iterator[Finding]:
    """What comes of each name, as found before or examined now."""
    known = {(title, finding.name): finding for title, finding in _read(results)}
    for name in names:
        finding = known.get((source.title, name))
        if finding is None:
            finding = examine(source, name)
            gc.collect()  # a network that was hooked holds itself
            _append(results, source.title, finding)
        if not works_but_for_split(finding):
            print(f"{name}: {finding.cannot_be_built or finding.problems}", flush=True)
        yield finding


def _read(results: Path | None) -> Iterator[tuple[str, Finding]]:
    if results is not None and results.is_file():
        for line in results.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            yield entry.pop("source"), Finding(**entry)


def _append(results: Path | None, title: str, finding: Finding) -> None:
    if results is not None:
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"source": title, **asdict(finding)}) + "\n")


if __name__ == "__main__":
    main()

"""Time several ways of doing the same in turn, and say how they compare."""

import argparse
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How one of us and one of the peers compare in one figure."""

    what: str
    """What was measured, and in which unit."""
    peer: str
    """With whom we are compared."""
    ours: float
    """Our median."""
    theirs: float
    """The peer's."""
    ratio: float
    """What is asked for: how many times faster, or how many times the cost."""
    goal: str
    """What the ratio should be, such as `>= 8`."""
    remark: str = ""
    """What else is to be known of the two, such as how good they were."""

    @property
    def is_reached(self) -> bool:
        """Whether the ratio is what it should be."""
        sign, limit = self.goal.split()
        return self.ratio >= float(limit) if sign == ">=" else self.ratio <= float(limit)

    def __str__(self) -> str:
        """One line for the reader of a terminal."""
        verdict = "reached" if self.is_reached else "NOT reached"
        figures = f"ours {self.ours:.4g}, {self.peer} {self.theirs:.4g}"
        remark = f"; {self.remark}" if self.remark else ""
        return f"{self.what}: {figures}, ratio {self.ratio:.3g} ({self.goal}: {verdict}){remark}"


def in_turn(
    ways: Mapping[str, Callable[[], float]], *, times: int, warm_up: bool = True
) -> dict[str, list[float]]:
    """What each way gives, run one after the other and that several times over.

    So a noisy neighbour meets all of them alike.

    Args:
        ways: What each returns is its figure.
        times: How often each runs.
        warm_up: Whether each runs once before, which does not count; not for what takes minutes.
    """
    figures: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(0 if warm_up else 1, times + 1):
        for name, run in ways.items():
            figure = run()
            if turn:
                figures[name].append(figure)
                print(f"  run {turn} of {times}: {name} {figure:.4g}", flush=True)
    return figures


def quicker(
    what: str, figures: Mapping[str, Sequence[float]], ours: str, peer: str, goal: str
) -> Comparison:
    """How many times as fast we are, by the medians of seconds."""
    medians = {name: statistics.median(figures[name]) for name in (ours, peer)}
    ratio = medians[peer] / medians[ours]
    return Comparison(
        what=what, peer=peer, ours=medians[ours], theirs=medians[peer], ratio=ratio, goal=goal
    )


def cost(
    what: str, figures: Mapping[str, Sequence[float]], ours: str, peer: str, goal: str
) -> Comparison:
    """How many times the peer's cost is ours, by the medians of the ratios of each round."""
    pairs = zip(figures[ours], figures[peer], strict=True)
    ratio = statistics.median(mine / theirs for mine, theirs in pairs)
    medians = {name: statistics.median(figures[name]) for name in (ours, peer)}
    return Comparison(
        what=what, peer=peer, ours=medians[ours], theirs=medians[peer], ratio=ratio, goal=goal
    )


def report(rows: Sequence[Comparison], out: Path | None) -> None:
    """Print the comparisons, and leave them as JSON lines for the table of all."""
    for row in rows:
        print(row, flush=True)
    if out is not None:
        with out.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(row)) + "\n" for row in rows)


def parser(description: str | None, *, times: int) -> argparse.ArgumentParser:
    """The arguments that every benchmark takes."""
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument("--times", type=int, default=times, help="how often each way runs")
    arguments.add_argument("--out", type=Path, help="file to which the figures are appended")
    return arguments


def machine() -> str:
    """The machine and the versions, as one line."""
    packages = ("torch", "torchvision", "lightning", "timm")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    cores = os.cpu_count()
    return f"{_cpu()}, {cores} cores{gpu}; Python {platform.python_version()}, {versions}"


def _cpu() -> str:
    try:
        listing = subprocess.run(["lscpu"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return platform.processor() or platform.machine()
    names = [
        line.partition(":")[2].strip() for line in listing.splitlines() if "Model name" in line
    ]
    return names[0] if names else platform.machine()

"""Measuring several systems in turn, so that what else the machine does hits all of them."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

Timed = Callable[[], int]
"""Does its work once, and says how many pictures that were."""


def in_turn(systems: Mapping[str, Timed], rounds: int) -> dict[str, list[float]]:
    """The pictures per second of each system in each round, after a round that does not count."""
    rates: dict[str, list[float]] = {name: [] for name in systems}
    for number in range(rounds + 1):
        for name, run in systems.items():
            start = time.perf_counter()
            pictures = run()
            if number:
                rates[name].append(pictures / (time.perf_counter() - start))
    return rates


def table(rates: Mapping[str, list[float]], *, ours: str) -> str:
    """The medians, from slowest to fastest round, and by how much ours is above each."""
    best = statistics.median(rates[ours])
    rows = ["| system | pictures/s, median | slowest to fastest round | ours to it |"]
    rows.append("|---|---|---|---|")
    for name, values in rates.items():
        median = statistics.median(values)
        span = f"{min(values):,.0f} to {max(values):,.0f}"
        rows.append(f"| {name} | {median:,.0f} | {span} | {best / median:.2f} |")
    return "\n".join(rows)


def machine() -> str:
    """The machine in a line."""
    cpu = platform.processor() or platform.machine()
    with_name = [
        line.split(":")[1].strip()
        for line in read("/proc/cpuinfo").splitlines()
        if line.startswith("model name")
    ]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{(with_name or [cpu])[0]}, {cores} cores, torch {torch.__version__} with "
        f"{torch.get_num_threads()} thread(s), Python {platform.python_version()}"
    )


def read(path: str) -> str:
    """A text file, or nothing where there is none."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""

"""What is right and what is not when a network is unfrozen: this project beside its peers.

`python -m benchmarks.peers.correctness` runs everything and writes `docs/correctness.md`; with
`--only` it prints the rows of some situations. `pip install "lit-finetune[peers]"` brings the peer
that is a package of its own.
"""

import argparse
import logging
import os
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: a second thread would only wait

import torch

from benchmarks.peers.isolation import Outcome, ask
from benchmarks.peers.report import Results, as_markdown, tables
from benchmarks.peers.situations import SCHEDULER_SITUATIONS, SITUATIONS, Situation
from benchmarks.peers.systems import SYSTEMS, System, version_of

ALL = SITUATIONS + SCHEDULER_SITUATIONS
PAGE = Path(__file__).parents[2] / "docs" / "correctness.md"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what was asked for, and write or print the tables."""
    options = parse(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    situations = [s for s in ALL if not options.only or s.name in options.only]
    systems = [s for s in SYSTEMS if not options.system or s.name in options.system]
    start = time.monotonic()
    results = run(systems, situations, options.timeout)
    seconds = time.monotonic() - start
    if options.only or options.system:
        print(tables(results))
    else:
        PAGE.write_text(as_markdown(results, seconds), encoding="utf-8")
        print(f"Wrote {PAGE.name} after {seconds:.0f} s.")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    names = [situation.name for situation in ALL]
    parser.add_argument(
        "--only", nargs="+", choices=names, metavar="SITUATION", help=", ".join(names)
    )
    parser.add_argument("--system", nargs="+", choices=[system.name for system in SYSTEMS])
    parser.add_argument("--timeout", type=float, default=90, help="seconds for one situation")
    return parser.parse_args(arguments)


def run(systems: Sequence[System], situations: Sequence[Situation], timeout_s: float) -> Results:
    """All situations on all systems, with a line for each as it goes."""
    results: Results = {}
    for situation in situations:
        for system in systems:
            start = time.monotonic()
            if version_of(system) is None:
                outcomes = [Outcome("not installed")] * len(situation.questions)
            else:
                outcomes = ask(system, situation, timeout_s)
            results[situation.name, system.name] = outcomes
            told = ", ".join(outcome.verdict for outcome in outcomes)
            seconds = time.monotonic() - start
            print(f"{situation.name} · {system.name}: {told} ({seconds:.1f} s)", flush=True)
    return results


if __name__ == "__main__":
    main()

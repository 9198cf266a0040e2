"""Two processes train, stop and go on together, in each kind of run that is named.

A run is a kind, a cadence and the batches to stop before. Each process writes down what differs
from the run that was never stopped.
"""

import json
import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from tests.resuming.resumed_kinds import KINDS, folder_of_pictures
from tests.resuming.resumed_runs import CADENCES, Run, Situation, compare, run


def in_two_processes(kind: str, keep: dict[str, Any]) -> Situation:
    """A kind of run under DDP."""
    situation = Situation(keep=keep, **KINDS[kind])
    trainer = {**situation.trainer, "strategy": "ddp", "devices": 2}
    return replace(situation, trainer=trainer, data={**situation.data, "batch_size": 8})


def main(folder: Path, runs: list[tuple[str, str, list[int]]]) -> None:
    """Compare each of the runs."""
    folder_of_pictures()

    @cache
    def unbroken(kind: str) -> Run:
        return run(in_two_processes(kind, {}), folder / f"whole {kind}")

    seen: dict[str, Any] = {}
    for kind, cadence, stops in runs:
        name = f"{kind}, {cadence}, {stops}"
        situation = in_two_processes(kind, CADENCES[cadence])
        seen[name] = compare(situation, folder / name, *stops, unbroken=unbroken(kind))
        (folder / f"{os.environ['LOCAL_RANK']}.json").write_text(json.dumps(seen))

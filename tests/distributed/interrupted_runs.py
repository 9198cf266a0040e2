"""Two processes train, and the first of them is sent a signal; both go on from what was kept.

Each process writes down what differs from the run that was never stopped, for each hook amid which
the signal came.
"""

import json
import os
import signal
from pathlib import Path

from tests.resuming.resumed_runs import Signal, Situation, StopBefore, compare, run

HOOKS = {
    "on_train_batch_end": 7,
    "on_validation_batch_start": 9,
}
AT_THE_END = ("on_train_end", 19)
TWO = Situation(trainer={"strategy": "ddp", "devices": 2})


def sent_to_the_first(hook: str, batch: int) -> Signal | StopBefore:
    """A signal in the first process, and nothing in the others."""
    is_first = os.environ.get("LOCAL_RANK", "0") == "0"
    return Signal(hook, batch, signal.SIGTERM) if is_first else StopBefore(None)


def main(folder: Path) -> None:
    """Stop a run in each hook, and go on with those that had not ended."""
    whole = run(TWO, folder / "whole")
    seen = {
        hook: compare(TWO, folder / hook, sent_to_the_first(hook, batch), unbroken=whole)
        for hook, batch in HOOKS.items()
    }
    end, _ = run(TWO, folder / "end", stop=sent_to_the_first(*AT_THE_END))
    text = json.dumps({"differences": seen, "exit": end.get("exit")})
    (folder / f"{os.environ['LOCAL_RANK']}.json").write_text(text)

"""Two processes check their validation, and one of them is sent SIGTERM.

Run as a program: `interrupted_early.py FOLDER RANK HOOK`.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from tests.resuming.resumed_runs import Situation, run


class SendTo(Callback):
    """Send a process SIGTERM in a hook, and to no other."""

    def __init__(self, rank: str, hook: str) -> None:
        self.rank = rank
        setattr(self, hook, self._send)

    def _send(self, *_: Any, **__: Any) -> None:
        if os.environ.get("LOCAL_RANK", "0") == self.rank:
            os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    two = Situation(trainer={"strategy": "ddp", "devices": 2})
    end, _ = run(two, Path(sys.argv[1]), stop=SendTo(*sys.argv[2:]))
    sys.exit(end.get("exit", 0))

"""Several processes that train together, without the seconds in which each would import torch.

They start as Lightning's own children do, by `LOCAL_RANK` in the environment, but each is the fork
of a server that has imported everything and has never trained: torch cannot go backward in the fork
of a process that has. That Lightning starts them itself, the test of the command line shows.
"""

import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_only

ROOT = Path(__file__).parents[2]
IMPORTS = [
    "torch._dynamo",
    "torch.distributed.fsdp",
    "sklearn.datasets",
    "lit_finetune.callbacks",
    "lit_finetune.classifier",
    "lit_finetune.datamodules",
]
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(IMPORTS)


def run_ranks(main: Callable[..., Any], *args: Any, folder: Path, ranks: int = 2) -> None:
    """Call a module's function in as many processes, each of which must end well."""
    for code, told in ends_of_ranks(main, *args, folder=folder, ranks=ranks):
        assert code == 0, told[-3000:]


def ends_of_ranks(
    main: Callable[..., Any], *args: Any, folder: Path, ranks: int = 2, timeout_s: float = 500
) -> list[tuple[int | None, str]]:
    """How each process has ended, and what it has printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"WORLD_SIZE": str(ranks), "NODE_RANK": "0"}
    with tempfile.TemporaryDirectory() as place:
        logs = [Path(place) / f"{rank}.txt" for rank in range(ranks)]
        processes = [
            start(main, *args, folder=folder, log=log, LOCAL_RANK=str(rank), **shared)
            for rank, log in enumerate(logs)
        ]
        _await(processes, time.monotonic() + timeout_s)
        return [
            (process.exitcode, log.read_text(errors="replace") if log.exists() else "")
            for process, log in zip(processes, logs, strict=True)
        ]


def start(main: Callable[..., Any], *args: Any, folder: Path, log: Path, **variables: str) -> Any:
    """Start a process that calls the function there, and writes what it prints into a file.

    The first of all starts the server, which is told where this tree is.
    """
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([before] if before else [])])
    try:
        environment = {**os.environ, **variables}
        process = _CONTEXT.Process(target=_act, args=(main, args, environment, folder, log))
        process.start()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return process


def _await(processes: list[Any], limit: float) -> None:
    """Wait for all; where one has failed, the others would wait for it for ever."""
    while any(process.is_alive() for process in processes):
        if time.monotonic() > limit:
            for process in processes:
                process.kill()
        if any(process.exitcode for process in processes):
            limit = min(limit, time.monotonic() + 20)
        time.sleep(0.02)
    for process in processes:
        process.join()


def _act(
    main: Callable[..., Any],
    args: tuple[Any, ...],
    environment: Mapping[str, str],
    folder: Path,
    log: Path,
) -> None:
    """What one process does."""
    os.environ |= environment
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with log.open("w") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    rank_zero_only.rank = int(environment.get("LOCAL_RANK", 0))
    main(*args)

"""Run a situation in processes of its own, so that a crash or a standstill costs one row."""

import multiprocessing
import os
import socket
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from benchmarks.peers.situations import Situation
from benchmarks.peers.systems import NotOfferedError, System
from benchmarks.peers.training import TinyNet

Verdict = Literal["right", "wrong", "crashes", "not offered", "not installed"]
_REFUSALS = (NotOfferedError, NotImplementedError, ValueError, MisconfigurationException)
_FORK = multiprocessing.get_context("fork")  # the libraries are imported once, and not each time


@dataclass(frozen=True)
class Outcome:
    """What became of a question."""

    verdict: Verdict
    figure: float | None = None
    message: str = ""


def ask(system: System, situation: Situation, timeout_s: float) -> list[Outcome]:
    """The outcome of each question of a situation, from processes of their own."""
    with tempfile.TemporaryDirectory() as folder:
        port = str(_free_port())
        pipes = [_FORK.Pipe(duplex=False) for _ in range(situation.ranks)]
        processes = [
            _FORK.Process(target=_in_process, args=(system, situation, folder, rank, port, pipe[1]))
            for rank, pipe in enumerate(pipes)
        ]
        for process, (_, sender) in zip(processes, pipes, strict=True):
            process.start()
            sender.close()
        try:
            return _collect([receiver for receiver, _ in pipes], timeout_s, situation)
        finally:
            _end(processes)


def measure(system: System, situation: Situation, folder: Path) -> list[Outcome]:
    """The outcome of each question of a situation, in this process.

    A refusal is an error of a kind that is raised on purpose, before the first training step.
    """
    TinyNet.steps_taken = 0
    outcomes: list[Outcome] = []
    figures = situation.measure(system, folder)
    for question in situation.questions:
        try:
            figure = next(figures)
        except Exception as error:
            refused = TinyNet.steps_taken == 0 and isinstance(error, _REFUSALS)
            message = _in_one_line(error)
            failed = Outcome("not offered" if refused else "crashes", message=message)
            return outcomes + [failed] * (len(situation.questions) - len(outcomes))
        is_right = figure <= question.tolerance  # never for NaN
        outcomes.append(Outcome("right" if is_right else "wrong", figure))
    return outcomes


def _in_process(
    system: System, situation: Situation, folder: str, rank: int, port: str, sender: Connection
) -> None:
    """What a forked process does: all that it prints goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    if situation.ranks > 1:  # as a cluster would: Lightning then starts no process itself
        os.environ.update(
            LOCAL_RANK=str(rank),
            NODE_RANK="0",
            WORLD_SIZE=str(situation.ranks),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
        )
    torch.set_num_threads(1)
    sender.send(measure(system, situation, Path(folder)))
    sender.close()


def _collect(receivers: list[Connection], timeout_s: float, situation: Situation) -> list[Outcome]:
    """What the first process measured; a failure of any other counts for all."""
    deadline = time.monotonic() + timeout_s
    results: dict[Connection, list[Outcome]] = {}
    while receivers[0] not in results:
        waiting = [receiver for receiver in receivers if receiver not in results]
        ready = wait(waiting, timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            failed = Outcome("crashes", message=f"no end within {timeout_s:.0f} seconds")
            return [failed] * len(situation.questions)
        for receiver in ready:
            assert isinstance(receiver, Connection)
            results[receiver] = _received(receiver, situation)
            if any(outcome.figure is None for outcome in results[receiver]):
                return results[receiver]
    return results[receivers[0]]


def _received(receiver: Connection, situation: Situation) -> list[Outcome]:
    with suppress(EOFError):
        outcomes: list[Outcome] = receiver.recv()
        return outcomes
    return [Outcome("crashes", message="the process died")] * len(situation.questions)


def _end(processes: list[ForkProcess]) -> None:
    for process in processes:
        process.join(timeout=1)
        if process.is_alive():
            process.kill()
            process.join()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _in_one_line(error: Exception, longest: int = 160) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= longest else f"{text[: longest - 1]}…"

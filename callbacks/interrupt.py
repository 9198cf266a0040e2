"""Ctrl-C and SIGTERM amid training: the run ends after a step, from which it can go on."""

import os
import signal
import threading
from collections.abc import Callable, Iterable
from functools import partial
from types import FrameType
from typing import Any

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers import (
    _MultiProcessingLauncher,
    _SubprocessScriptLauncher,
)
from lightning.pytorch.utilities.exceptions import SIGTERMException

CHECK_EVERY = 10
"""Batches after which processes on GPUs ask each other: the host waits for the device then."""
_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
_NOTICE = (
    b"\nThe run ends after this step. Press Ctrl-C again to quit at once, without a checkpoint.\n"
)
_BEFORE = b"\nStopped by SIGTERM before the first step: nothing was trained, and nothing is kept.\n"


class Interrupt:
    """Take note of a first Ctrl-C or SIGTERM; a second one quits at once.

    Handlers of the user's own stay, and so does SLURM's way to requeue a job.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        """The signal that has come."""
        self.is_obeyed = False
        """Whether the run is about to end because of it."""
        self._is_told = False
        self._handlers: dict[int, Any] = {}

    def prepare(self, trainer: Trainer) -> None:
        """Let SIGTERM end all processes at once as long as nothing is trained: in `setup`.

        Lightning's own handler asks the other processes when it comes, whatever they do then, so
        that all may wait for ever; and a single process ends with status 0.
        """
        self.signum, self.is_obeyed = None, False
        self._end_at_once(trainer)
        connector = trainer._signal_connector
        register = connector.register_signal_handlers  # called when the run is set up
        if not isinstance(register, partial):
            again = partial(self._register, trainer, register)
            connector.register_signal_handlers = again  # type: ignore[method-assign]

    def listen(self, trainer: Trainer) -> None:
        """Begin to take note.

        Under `ddp_spawn`, `ddp_fork` and `ddp_notebook` nobody does: there Lightning waits for ever
        for a process that ends so.
        """
        self.ignore()
        self.signum, self.is_obeyed, self._is_told = None, False, trainer.is_global_zero
        self._handle(trainer, _NAMES, self._note)

    def ignore(self) -> None:
        """Leave signals to whom they were left before."""
        for signum, (before, ours) in self._handlers.items():
            if signal.getsignal(signum) == ours:
                signal.signal(signum, before)
        self._handlers = {}

    def end_early(self, trainer: Trainer) -> None:
        """End the run where an epoch has not begun to train, if a signal has come.

        Several processes end behind the epoch's first step: here they may not ask each other.

        Raises:
            SIGTERMException: One has.
        """
        begun = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        if self.signum is not None and trainer.world_size == 1 and not begun:
            self.is_obeyed = True
            raise SIGTERMException

    def obey(self, trainer: Trainer, batch_idx: int | None = None) -> None:
        """Let the Trainer end after this batch and all that belongs to it, if a signal has come.

        Not amid an accumulated step: its gradients would be lost.

        Args:
            trainer: In `on_train_batch_end`, or in `on_validation_end`.
            batch_idx: Of the batch, where processes need not ask each other each time.
        """
        if trainer.fit_loop._should_accumulate():
            return
        on_cpu = trainer.strategy.root_device.type == "cpu"
        is_costly = trainer.world_size > 1 and not on_cpu
        if is_costly and (batch_idx or 0) % CHECK_EVERY:
            return
        if self.has_come(trainer):
            self.is_obeyed = trainer._signal_connector.received_sigterm = True

    def has_come(self, trainer: Trainer) -> bool:
        """Whether any process was sent a signal; all must ask at the same time."""
        is_here = self.signum is not None
        if trainer.world_size == 1:
            return is_here
        return bool(trainer.strategy.reduce_boolean_decision(is_here, all=False))

    @property
    def exit_code(self) -> int:
        """What a program that such a signal has ended returns."""
        return 128 + (self.signum or signal.SIGTERM)

    def farewell(self, step: int, path: str) -> str:
        """Where the run is kept, and how to go on."""
        name = _NAMES[signal.Signals(self.signum or signal.SIGTERM)]
        return (
            f"Stopped by {name} after step {step}, which is kept in {path}. To go on: --ckpt_path"
            f" {path}, in Python trainer.fit(..., ckpt_path={path!r})."
        )

    def _register(self, trainer: Trainer, register: Callable[[], None]) -> None:
        self.ignore()  # or Lightning would put its own handler before this one
        register()
        if trainer.state.fn == "fit":
            self._end_at_once(trainer)

    def _end_at_once(self, trainer: Trainer) -> None:
        def end(signum: int, frame: FrameType | None) -> None:
            self.ignore()
            if trainer.is_global_zero:
                os.write(2, _BEFORE)
            if isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher):
                trainer.strategy.launcher.kill(signal.SIGKILL)
            raise SystemExit(128 + signum)

        self._handle(trainer, [signal.SIGTERM], end)

    def _handle(self, trainer: Trainer, signums: Iterable[int], handler: Any) -> None:
        """Handle signals that nobody else does; only the main thread may."""
        is_main = threading.current_thread() is threading.main_thread()
        if not is_main or isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
            return
        for signum in signums:
            if _is_default(trainer, signum):
                self._handlers[signum] = signal.signal(signum, handler), handler

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            self.ignore()
            raise SystemExit(128 + signum)
        self.signum = signum
        if self._is_told:
            os.write(2, _NOTICE)  # `print` must not be called amid another one


def _is_default(trainer: Trainer, signum: int) -> bool:
    """Whether nobody but Python and Lightning cares for a signal."""
    if signum == signal.SIGINT:
        return signal.getsignal(signum) is signal.default_int_handler
    connector = trainer._signal_connector
    if isinstance(trainer._accelerator_connector.cluster_environment, SLURMEnvironment):
        return False
    original = connector._original_handlers or {signal.SIGTERM: signal.getsignal(signal.SIGTERM)}
    return original.get(signal.SIGTERM) in (None, signal.SIG_DFL)

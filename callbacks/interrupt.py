"""Ctrl-C and SIGTERM during training: the run ends after a step, from which it can resume."""

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
"""Batches between the checks of processes on GPUs: a check waits for the device."""
_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
_NOTICE = (
    b"\nThe run ends after this step. Press Ctrl-C again to quit at once, without a checkpoint.\n"
)
_STOPPED_EARLY = (
    b"\nStopped by SIGTERM before the first step: nothing was trained, and nothing is kept.\n"
)


class InterruptHandler:
    """Records the first Ctrl-C or SIGTERM; a second one quits at once.

    The user's own handlers and SLURM's requeueing are not replaced.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        """The signal that was received."""
        self.is_handled = False
        """Whether the run is ending because of the signal."""
        self._prints = False
        self._handlers: dict[int, Any] = {}

    def prepare(self, trainer: Trainer) -> None:
        """In `setup`: let SIGTERM exit all processes at once until training starts.

        Lightning's own handler communicates with the other processes at any moment, so that all
        may wait forever; and a single process exits with status 0.
        """
        self.signum, self.is_handled = None, False
        self._exit_on_sigterm(trainer)
        connector = trainer._signal_connector
        register = connector.register_signal_handlers  # called when the run is set up
        if not isinstance(register, partial):
            wrapped = partial(self._register, trainer, register)
            connector.register_signal_handlers = wrapped  # type: ignore[method-assign]

    def start(self, trainer: Trainer) -> None:
        """Start to record signals.

        Not under `ddp_spawn`, `ddp_fork` and `ddp_notebook`: there Lightning waits forever for a
        process that exits by a signal.
        """
        self.restore_handlers()
        self.signum, self.is_handled, self._prints = None, False, trainer.is_global_zero
        self._handle(trainer, _NAMES, self._record)

    def restore_handlers(self) -> None:
        """Restore the handlers from before."""
        for signum, (before, ours) in self._handlers.items():
            if signal.getsignal(signum) == ours:
                signal.signal(signum, before)
        self._handlers = {}

    def stop_before_training(self, trainer: Trainer) -> None:
        """End the run before the first step of an epoch if a signal was received.

        Several processes end after that step instead: here they must not communicate.

        Raises:
            SIGTERMException: A signal was received.
        """
        has_started = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        if self.signum is not None and trainer.world_size == 1 and not has_started:
            self.is_handled = True
            raise SIGTERMException

    def stop_after_batch(self, trainer: Trainer, batch_idx: int | None = None) -> None:
        """Let the Trainer end after this batch if a signal was received.

        Not within an accumulated step, whose gradients would be lost.

        Args:
            trainer: In `on_train_batch_end`, or in `on_validation_end`.
            batch_idx: The index of the batch, if several processes need not check at each one.
        """
        if trainer.fit_loop._should_accumulate():
            return
        is_costly = trainer.world_size > 1 and trainer.strategy.root_device.type != "cpu"
        if is_check_due(batch_idx, is_costly=is_costly) and self.is_received(trainer):
            self.is_handled = trainer._signal_connector.received_sigterm = True

    def is_received(self, trainer: Trainer) -> bool:
        """Whether any process received a signal; all processes must call this together."""
        is_here = self.signum is not None
        if trainer.world_size == 1:
            return is_here
        return bool(trainer.strategy.reduce_boolean_decision(is_here, all=False))

    @property
    def exit_code(self) -> int:
        """The exit status of a program that the signal ended."""
        return 128 + (self.signum or signal.SIGTERM)

    def _register(self, trainer: Trainer, register: Callable[[], None]) -> None:
        self.restore_handlers()  # else Lightning would call its own handler before ours
        register()
        if trainer.state.fn == "fit":
            self._exit_on_sigterm(trainer)

    def _exit_on_sigterm(self, trainer: Trainer) -> None:
        def exit_all(signum: int, frame: FrameType | None) -> None:
            self.restore_handlers()
            if trainer.is_global_zero:
                os.write(2, _STOPPED_EARLY)
            if isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher):
                trainer.strategy.launcher.kill(signal.SIGKILL)
            raise SystemExit(128 + signum)

        self._handle(trainer, [signal.SIGTERM], exit_all)

    def _handle(self, trainer: Trainer, signums: Iterable[int], handler: Any) -> None:
        """Handle the signals that have no other handler; only the main thread may do this."""
        is_main = threading.current_thread() is threading.main_thread()
        if not is_main or isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
            return
        for signum in signums:
            if _is_default(trainer, signum):
                self._handlers[signum] = signal.signal(signum, handler), handler

    def _record(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            self.restore_handlers()
            raise SystemExit(128 + signum)
        self.signum = signum
        if self._prints:
            os.write(2, _NOTICE)  # the signal may interrupt a `print`, which is not reentrant


def is_check_due(batch_idx: int | None, *, is_costly: bool) -> bool:
    """Whether processes check for signals after a batch; None stands for no training batch.

    >>> [is_check_due(batch_idx, is_costly=True) for batch_idx in (0, 7, 10, None)]
    [True, False, True, True]
    """
    return not (is_costly and (batch_idx or 0) % CHECK_EVERY)


def stop_message(signum: int, step: int, path: str) -> str:
    """The message at the end of an interrupted run: which step is saved where, and how to resume.

    >>> print(stop_message(signal.SIGINT, 7, "last.ckpt"))
    Stopped by Ctrl-C after step 7, which is kept in last.ckpt. To resume: --ckpt_path
    last.ckpt, in Python trainer.fit(..., ckpt_path='last.ckpt').
    """
    return (
        f"Stopped by {_NAMES[signal.Signals(signum)]} after step {step}, which is kept in {path}."
        f" To resume: --ckpt_path {path}, in Python trainer.fit(..., ckpt_path={path!r})."
    )


def _is_default(trainer: Trainer, signum: int) -> bool:
    """Whether a signal has only the default handler of Python or Lightning."""
    if signum == signal.SIGINT:
        return signal.getsignal(signum) is signal.default_int_handler
    connector = trainer._signal_connector
    if isinstance(trainer._accelerator_connector.cluster_environment, SLURMEnvironment):
        return False
    original = connector._original_handlers or {signal.SIGTERM: signal.getsignal(signal.SIGTERM)}
    return original.get(signal.SIGTERM) in (None, signal.SIG_DFL)

"""Save the best and the last checkpoint of a run."""

import secrets
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from typing_extensions import override

from lit_finetune.checkpoints.find_checkpoints import (
    best_checkpoint,
    checkpoint_dirpaths,
    last_checkpoint,
)
from lit_finetune.checkpoints.removal import (
    RUN_ID,
    is_directly_in,
    is_local,
    is_written_by,
    validate_state,
)
from lit_finetune.distributed.wrapping import shards_parameters
from lit_finetune.files.atomic_write import replace_path, temporary_folder
from lit_finetune.files.terminal_text import printable
from lit_finetune.resuming.checkpoint_io import AtomicCheckpointIO, use_atomic_checkpoints
from lit_finetune.resuming.run_state import RUN

from .interrupt import InterruptHandler, stop_message


class BestCheckpoint(ModelCheckpoint):
    """Keep the best checkpoint of a run.

    This is Lightning's `ModelCheckpoint`, but a resumed run, which has a new folder, remembers the
    best checkpoint of the interrupted run. It removes only files in its own folder that the run
    wrote itself, whatever paths the resumed checkpoint contains.
    """

    _run_id = ""
    _written_paths: frozenset[str] = frozenset()
    """The files that this run wrote, the same in all processes."""

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._run_id = self._run_id or secrets.token_hex(16)
        use_atomic_checkpoints(trainer.strategy)

    @override
    def _find_last_checkpoints(self, trainer: Trainer) -> set[str]:
        return {str(last_checkpoint(checkpoint_dirpaths(trainer)))}  # of earlier runs too

    @staticmethod
    def find_best(trainer: Trainer) -> str:
        """The path of the best checkpoint of the newest run.

        Raises:
            FileNotFoundError: There is none.
        """
        return str(best_checkpoint(checkpoint_dirpaths(trainer)))

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), RUN_ID: self._run_id}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        state = validate_state(state_dict)
        best, run_id = state["best_model_path"], state.get(RUN_ID)
        if not is_local(best) and not is_directly_in(best, str(self.dirpath)):
            rank_zero_warn(f"The earlier best checkpoint is in another place: '{printable(best)}'.")
            state["best_model_path"] = ""
        # Lightning drops all scores if the folder has changed.
        super().load_state_dict({**state, "dirpath": self.dirpath})
        self._run_id = run_id if isinstance(run_id, str) else self._run_id

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        paths = {*self.best_k_models, self.best_model_path, self.last_model_path}
        unknown = paths - self._written_paths if trainer.is_global_zero else ()
        earlier = [path for path in unknown if self._is_written_by_run(path)]
        self._written_paths |= {*trainer.strategy.broadcast(earlier)}
        if isinstance(trainer.strategy.checkpoint_io, AtomicCheckpointIO):
            for path in earlier:
                trainer.strategy.checkpoint_io.add_written(path)
        if self.last_model_path not in self._written_paths:
            self.last_model_path = ""

    def _is_written_by_run(self, path: str) -> bool:
        key, folder = self.state_key, str(self.dirpath)
        return is_written_by(path, folder, state_key=key, run_id=self._run_id)

    @override
    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        self._written_paths |= {filepath}

    @override
    def _should_remove_checkpoint(self, trainer: Trainer, previous: str, current: str) -> bool:
        is_own = previous in self._written_paths
        return is_own and super()._should_remove_checkpoint(trainer, previous, current)

    @override
    def _get_metric_interpolated_filepath_name(
        self,
        monitor_candidates: dict[str, Tensor],
        trainer: Trainer,
        del_filepath: str | None = None,
    ) -> str:
        # Only the name of a file that this run may remove can be used again.
        removed = del_filepath if del_filepath in self._written_paths else None
        return super()._get_metric_interpolated_filepath_name(monitor_candidates, trainer, removed)


class LastCheckpoint(ModelCheckpoint):
    """Keep the latest checkpoint of a run as `last.ckpt`, to resume from.

    Lightning's `ModelCheckpoint(save_last=True)` writes it only if the best has changed as well.
    By default it is written at the end of each epoch. After Ctrl-C or SIGTERM the current step is
    completed and saved, and the program exits with status 130 or 143; a second Ctrl-C quits at
    once.

    Args:
        dirpath: The folder; by default `checkpoints` in the folder of the logs.
        every_n_train_steps: Write it after this number of steps instead.
        train_time_interval: Write it after this time instead.
    """

    def __init__(
        self,
        dirpath: str | Path | None = None,
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | None = None,
    ) -> None:
        super().__init__(
            dirpath=dirpath,
            filename=self.CHECKPOINT_NAME_LAST,
            every_n_train_steps=every_n_train_steps,
            train_time_interval=train_time_interval,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        self._interrupt = InterruptHandler()

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        use_atomic_checkpoints(trainer.strategy)
        # After the callbacks that save the best, because it stores their states. A new list:
        # Lightning iterates over the old one now.
        others = [each for each in trainer.callbacks if each is not self]  # type: ignore[attr-defined]
        trainer.callbacks = [*others, self]  # type: ignore[attr-defined]
        if stage == "fit":
            self._interrupt.prepare(trainer)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._interrupt.start(trainer)

    def stop_before_training(self, trainer: Trainer) -> None:
        """Save and end the run if a signal was received before an epoch's first step."""
        self._interrupt.stop_before_training(trainer)

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if not trainer.fit_loop._should_accumulate():  # accumulated gradients are not saved
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._interrupt.stop_after_batch(trainer, batch_idx)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._interrupt.stop_after_batch(trainer)

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._interrupt.restore_handlers()
        is_trial = getattr(trainer, "fast_dev_run", False)  # mypy does not see this attribute
        if isinstance(exception, SIGTERMException) and self._interrupt.is_handled:
            exception.code = self._interrupt.exit_code
            if not is_trial:
                self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
                if trainer.is_global_zero:
                    signum = self._interrupt.signum or signal.SIGTERM
                    text = stop_message(signum, trainer.global_step, self.best_model_path)
                    print(text, file=sys.stderr)
            return
        super().on_exception(trainer, pl_module, exception)

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._interrupt.is_handled and trainer.state.status == "interrupted":
            checkpoint.setdefault(RUN, {})["is_settled"] = True

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._interrupt.restore_handlers()
        # A signal after the last check. All processes exit: else some would wait for the others.
        if stage == "fit" and self._interrupt.is_received(trainer):
            raise SystemExit(self._interrupt.exit_code)

    @override
    def _find_last_checkpoints(self, trainer: Trainer) -> set[str]:
        return {str(last_checkpoint(checkpoint_dirpaths(trainer)))}  # of earlier runs too

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A run of 0 epochs, as of a LinearProbe alone, never calls on_train_epoch_end.
        if trainer.max_epochs == 0:
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing: a resumed run writes its own checkpoint."""

    @override
    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        if not shards_parameters(trainer.strategy):
            super()._save_checkpoint(trainer, filepath)
            return
        # All processes write to a new folder, which then replaces the last one.
        target = Path(filepath)
        if not trainer.is_global_zero:
            self._save_and_replace(trainer, "", target)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(target.parent) as folder:
            self._save_and_replace(trainer, str(folder / target.name), target)

    def _save_and_replace(self, trainer: Trainer, new: str, target: Path) -> None:
        """Write to the path of process 0, which then replaces the target by it."""
        new = trainer.strategy.broadcast(new)
        super()._save_checkpoint(trainer, new)
        self._last_checkpoint_saved = str(target)
        if trainer.is_global_zero:
            replace_path(Path(new), target)
        trainer.strategy.barrier()

"""The checkpoints of a run: the best, and the last."""

import secrets
import shutil
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

from lit_finetune.checkpoints.earlier_runs import (
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
from lit_finetune.files.atomic_write import temporary_folder
from lit_finetune.files.terminal_text import printable
from lit_finetune.resuming.checkpoint_io import AtomicCheckpointIO, use_atomic_checkpoints
from lit_finetune.resuming.run_state import RUN

from .interrupt import Interrupt


class BestCheckpoint(ModelCheckpoint):
    """Keep the best checkpoint of a run.

    As Lightning's `ModelCheckpoint`, but a resumed run, which has a folder of its own, remembers
    the best of before. Of the files that the checkpoint names from which it goes on, it removes
    only those that stand in its own folder and that it wrote itself before.
    """

    _run_id = ""
    _written: frozenset[str] = frozenset()
    """The files that this run has written, in all processes the same."""

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
            rank_zero_warn(f"The best checkpoint of before is elsewhere: '{printable(best)}'.")
            state["best_model_path"] = ""
        # Lightning forgets all scores when the folder is another.
        super().load_state_dict({**state, "dirpath": self.dirpath})
        self._run_id = run_id if isinstance(run_id, str) else self._run_id

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        named = {*self.best_k_models, self.best_model_path, self.last_model_path} - self._written
        earlier = [path for path in named if trainer.is_global_zero and self._wrote_before(path)]
        self._written |= {*trainer.strategy.broadcast(earlier)}
        if isinstance(trainer.strategy.checkpoint_io, AtomicCheckpointIO):
            for path in earlier:
                trainer.strategy.checkpoint_io.note(path)
        if self.last_model_path not in self._written:
            self.last_model_path = ""

    def _wrote_before(self, path: str) -> bool:
        key, folder = self.state_key, str(self.dirpath)
        return is_written_by(path, folder, state_key=key, run_id=self._run_id)

    @override
    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        self._written |= {filepath}

    @override
    def _should_remove_checkpoint(self, trainer: Trainer, previous: str, current: str) -> bool:
        is_ours = previous in self._written
        return is_ours and super()._should_remove_checkpoint(trainer, previous, current)

    @override
    def _get_metric_interpolated_filepath_name(
        self,
        monitor_candidates: dict[str, Tensor],
        trainer: Trainer,
        del_filepath: str | None = None,
    ) -> str:
        # A name that is taken is free only where the file is ours to remove.
        freed = del_filepath if del_filepath in self._written else None
        return super()._get_metric_interpolated_filepath_name(monitor_candidates, trainer, freed)


class LastCheckpoint(ModelCheckpoint):
    """Keep the latest checkpoint of a run as `last.ckpt`, to resume from.

    Lightning's `ModelCheckpoint(save_last=True)` writes it only when the best has changed as well.
    By default it is written at the end of each epoch. After Ctrl-C or SIGTERM the step that trains
    is finished and kept, and the program exits with status 130 or 143; a second Ctrl-C quits at
    once.

    Args:
        dirpath: The folder; by default `checkpoints` in that of the logs.
        every_n_train_steps: Write it each time that so many steps are done instead.
        train_time_interval: Write it each time that so much time has passed instead.
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
        self._interrupt = Interrupt()

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        use_atomic_checkpoints(trainer.strategy)
        # Behind those who keep the best, of which it holds what they know. A new list: Lightning is
        # going through the old one.
        others = [each for each in trainer.callbacks if each is not self]  # type: ignore[attr-defined]
        trainer.callbacks = [*others, self]  # type: ignore[attr-defined]
        if stage == "fit":
            self._interrupt.prepare(trainer)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._interrupt.listen(trainer)

    def end_early(self, trainer: Trainer) -> None:
        """Keep what is reached and end, if a signal has come while pictures were made ready."""
        self._interrupt.end_early(trainer)

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if not trainer.fit_loop._should_accumulate():  # else gradients wait, which no file holds
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._interrupt.obey(trainer, batch_idx)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._interrupt.obey(trainer)

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._interrupt.ignore()
        is_trial = getattr(trainer, "fast_dev_run", False)  # mypy knows no such attribute
        if isinstance(exception, SIGTERMException) and self._interrupt.is_obeyed:
            exception.code = self._interrupt.exit_code
            if not is_trial:
                self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
                if trainer.is_global_zero:
                    text = self._interrupt.farewell(trainer.global_step, self.best_model_path)
                    print(text, file=sys.stderr)
            return
        super().on_exception(trainer, pl_module, exception)

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._interrupt.is_obeyed and trainer.state.status == "interrupted":
            checkpoint.setdefault(RUN, {})["is_settled"] = True

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._interrupt.ignore()
        # Amid what came last. All processes end, or some would wait for the others ever after.
        if stage == "fit" and self._interrupt.has_come(trainer):
            raise SystemExit(self._interrupt.exit_code)

    @override
    def _find_last_checkpoints(self, trainer: Trainer) -> set[str]:
        return {str(last_checkpoint(checkpoint_dirpaths(trainer)))}  # of earlier runs too

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A run of no epochs, such as that of a LinearProbe alone, has no epoch's end.
        if trainer.max_epochs == 0:
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing: a resumed run writes its own."""

    @override
    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        if not shards_parameters(trainer.strategy):
            super()._save_checkpoint(trainer, filepath)
            return
        # All processes write into a folder: beside the last one, which stays whole until then.
        place = Path(filepath)
        if not trainer.is_global_zero:
            self._save_beside(trainer, "", place)
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(place.parent) as folder:
            self._save_beside(trainer, str(folder / place.name), place)

    def _save_beside(self, trainer: Trainer, new: str, place: Path) -> None:
        """Write to where the first process says, which then puts it in its place."""
        new = trainer.strategy.broadcast(new)
        super()._save_checkpoint(trainer, new)
        self._last_checkpoint_saved = str(place)
        if trainer.is_global_zero:
            put_in_place(Path(new), place)
        trainer.strategy.barrier()


def put_in_place(new: Path, place: Path) -> None:
    """Put a file or a folder where another one may be, which is gone only then."""
    if not place.is_dir() or place.is_symlink():
        new.replace(place)
        return
    old = place.with_name(f"{place.name}.old-{secrets.token_hex(8)}")
    place.rename(old)
    new.rename(place)
    shutil.rmtree(old)

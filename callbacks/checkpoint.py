"""The checkpoints of a run: the best, and the last."""

import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from typing_extensions import override

from lit_finetune.distributed import shards


class BestCheckpoint(ModelCheckpoint):
    """Keep the best checkpoint of a run.

    As Lightning's `ModelCheckpoint`, but a resumed run, which has a folder of its own, remembers
    the best of before.
    """

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Lightning forgets all scores when the folder is another. It deletes nothing there.
        super().load_state_dict({**state_dict, "dirpath": self.dirpath})


class LastCheckpoint(ModelCheckpoint):
    """Keep the latest checkpoint of a run as `last.ckpt`, to resume from.

    Lightning's `ModelCheckpoint(save_last=True)` writes it only when the best has changed as well.
    By default it is written at the end of each epoch.

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
        if not shards(trainer.strategy):
            super()._save_checkpoint(trainer, filepath)
            return
        # All processes write into a folder: beside the last one, which stays whole until then.
        super()._save_checkpoint(trainer, f"{filepath}.part")
        self._last_checkpoint_saved = filepath
        if trainer.is_global_zero:
            put_in_place(Path(f"{filepath}.part"), Path(filepath))
        trainer.strategy.barrier()


def put_in_place(new: Path, place: Path) -> None:
    """Put a file or a folder where another one may be, which is gone only then."""
    if not place.is_dir():
        new.replace(place)
        return
    old = place.with_name(f"{place.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    place.rename(old)
    new.rename(place)
    shutil.rmtree(old)

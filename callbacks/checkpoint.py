"""The checkpoints of a run: the best, and the last."""

from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from typing_extensions import override


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

"""The checkpoints of a run."""

from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint
from typing_extensions import override


class BestAndLast(ModelCheckpoint):
    """Keep the best checkpoint of a run and the last.

    As Lightning's `ModelCheckpoint`, but a resumed run, which has a folder of its own, remembers
    the best of before.
    """

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Lightning forgets all scores when the folder is another. It deletes nothing there.
        super().load_state_dict({**state_dict, "dirpath": self.dirpath, "last_model_path": ""})

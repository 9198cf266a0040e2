"""The kinds of runs that are stopped and go on, by name: what a `Situation` is made with."""

from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    StochasticWeightAveraging,
    WeightAveraging,
)
from PIL import Image
from sklearn.datasets import load_digits
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from lit_finetune.callbacks import FrozenPrefixCache
from lit_finetune.datamodules import ImageFolderDataModule
from tests.resuming.resumed_runs import BATCHES, EPOCHS


class AveragedByEpochs(WeightAveraging):
    """The mean of the weights at the epochs' ends."""

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return epoch_idx is not None


def folder_of_pictures() -> Path:
    """A hundred digits of three classes as files, in the folder that the program is in."""
    folder = Path("pictures")
    if not folder.exists():
        digits = load_digits(n_class=3)
        pairs = zip(digits.images[:100], digits.target, strict=False)
        for number, (pixels, label) in enumerate(pairs):
            path = folder / str(label) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((pixels * 15).astype("uint8")).resize((16, 12)).save(path)
    return folder


def kept_pictures(**options: Any) -> ImageFolderDataModule:
    """Pictures that are kept once they are decoded."""
    return ImageFolderDataModule(folder_of_pictures(), **options)


PHASES = [
    {"modules": "head", "warmup_steps": 3},
    {"step": 4, "modules": "layer2", "lr_scale": 0.5, "warmup_steps": 4},
    {
        "on_plateau": {"monitor": "val/loss", "patience": 1, "min_delta": 0.5, "max_epochs": 2},
        "modules": "layer1",
        "restore_best": True,
    },
]
MOMENTUM = partial(SGD, momentum=0.9)
PLATEAU = {"optimizer": MOMENTUM, "lr_scheduler": partial(ReduceLROnPlateau, patience=0)}
ONE_CYCLE = {
    "optimizer": MOMENTUM,
    "lr_scheduler": partial(OneCycleLR, max_lr=0.1, total_steps=EPOCHS * BATCHES),
    "lr_scheduler_interval": "step",
}
KINDS: dict[str, dict[str, Any]] = {
    "cosine": {},
    "plateau phases": {"schedule": PHASES},
    "validated twice": {"schedule": PHASES, "trainer": {"val_check_interval": 2}},
    "plateau scheduler": {"model": PLATEAU},
    "one cycle": {"model": ONE_CYCLE},
    "accumulated": {"trainer": {"accumulate_grad_batches": 2}},
    "averaged": {"callbacks": lambda: [EMAWeightAveraging(decay=0.7)]},
    "rarely validated": {"trainer": {"check_val_every_n_epoch": 2}},
    "validated by steps": {"trainer": {"val_check_interval": 3, "check_val_every_n_epoch": None}},
    "never validated": {
        "schedule": {0: "head", 1: "layer2"},
        "trainer": {"limit_val_batches": 0},
    },
    "counted in steps": {"trainer": {"max_epochs": -1, "max_steps": 18}},
    "mixed": {"model": {"mixup_alpha": 0.3, "cutmix_alpha": 0.5}},
    "workers": {"data": {"num_workers": 1}},
    "prefixes": {
        "data": {"train_augmentation": "none"},
        "callbacks": lambda: [FrozenPrefixCache()],
    },
    "views": {"callbacks": lambda: [FrozenPrefixCache(views=2)]},
    "averaged at some steps": {
        "callbacks": lambda: [
            EMAWeightAveraging(decay=0.7, update_every_n_steps=2, update_starting_at_step=4)
        ],
        "trainer": {"accumulate_grad_batches": 2},
    },
    "averaged by epochs": {"callbacks": lambda: [AveragedByEpochs()], "schedule": PHASES},
    "accumulated later": {
        "callbacks": lambda: [GradientAccumulationScheduler({0: 1, 1: 2})],
        "model": {"lr_scheduler": "constant"},
    },
    "averaged in the end": {
        "callbacks": lambda: [StochasticWeightAveraging(0.01, swa_epoch_start=2)]
    },
    "pictures in memory": {"datamodule": kept_pictures, "data": {"cache": "ram"}},
    "pictures on disk": {
        "datamodule": kept_pictures,
        "data": {"cache": "disk", "cache_dir": "kept", "num_workers": 1},
    },
    "prefixes on disk": {
        "datamodule": kept_pictures,
        "data": {"cache": "disk", "train_augmentation": "none"},
        "callbacks": lambda: [FrozenPrefixCache(cache_dir="prefixes")],
    },
}

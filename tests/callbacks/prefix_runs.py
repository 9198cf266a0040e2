"""A small network and its pictures, trained with a cache of its frozen blocks and without one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lit_finetune import FinetuneClassifier
from lit_finetune.callbacks import FreezeUnfreezeCallback, FrozenPrefixCache
from lit_finetune.splitting.split import PrefixOutput

STEPS = 4
"""Of an epoch."""


class Net(nn.Module):
    """Three stages with statistics and dropout, and a head with dropout of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = self.stage(3, 4)
        self.layer1 = self.stage(4, 4)
        self.layer2 = self.stage(4, 8)
        self.drop = nn.Dropout(0.2)
        self.fc = nn.Linear(8, 3)

    def stage(self, width: int, out: int) -> nn.Module:
        convolution = nn.Conv2d(width, out, 3, padding=1)
        return nn.Sequential(convolution, nn.BatchNorm2d(out), nn.ReLU(), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(self.layer2(self.layer1(self.stem(x))).mean((2, 3))))


class Pictures(Dataset[tuple[Tensor, int]]):
    """Pictures in memory that count how often each is asked for."""

    def __init__(self, count: int, transform: Callable[[Tensor], Tensor] | None = None) -> None:
        self.data = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(count))
        self.targets = [index % 3 for index in range(count)]
        self.transform = transform
        self.asked = 0

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.asked += 1
        image = self.data[index]
        return self.transform(image) if self.transform else image, self.targets[index]


class Diary(Callback):
    """Each step's loss and what its batch was; each validation's loss."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.entries: list[str] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        self.losses.append(float(outputs["loss"]))
        is_kept = isinstance(batch[0], PrefixOutput)
        self.entries.append(batch[0].block if is_kept else "pictures")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.losses.append(float(trainer.callback_metrics["val/loss"]))


class Run:
    """One training; `diary` says what happened, `model` is what came of it."""

    def __init__(
        self,
        schedule: Any,
        *callbacks: Callback,
        train: Any = None,
        val: Any = None,
        data: Any = None,
        model: dict[str, Any] | None = None,
        network: Callable[[], nn.Module] = Net,
        ckpt_path: Path | None = None,
        **options: Any,
    ) -> None:
        seed_everything(0, verbose=False)
        self.diary = Diary()
        self.model = FinetuneClassifier(network(), num_classes=3, lr=0.05, **model or {})
        self.trainer = Trainer(
            **{
                "max_epochs": 3,
                "accelerator": "cpu",
                "logger": False,
                "enable_checkpointing": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                **options,
            },
            callbacks=[FreezeUnfreezeCallback(schedule), *callbacks, self.diary],
        )
        if data is None:
            loaders = {
                "train_dataloaders": train or loader(Pictures(8 * STEPS), shuffle=True),
                "val_dataloaders": val or loader(Pictures(12)),
            }
        else:
            loaders = {"datamodule": data}
        self.trainer.fit(self.model, **loaders, ckpt_path=ckpt_path)

    def state(self) -> dict[str, Tensor]:
        """All that the network has."""
        return self.model.state_dict()


def loader(pictures: Any, **options: Any) -> DataLoader[Any]:
    return DataLoader(pictures, **{"batch_size": 8, **options})


def are_equal(one: Run, other: Run) -> bool:
    """Whether two runs have the same losses and end with the same bits."""
    pairs = zip(one.state().values(), other.state().values(), strict=True)
    return one.diary.losses == other.diary.losses and all(torch.equal(a, b) for a, b in pairs)


def epochs(run: Run) -> list[str]:
    """What the batches of each epoch were."""
    entries = run.diary.entries
    return [" ".join(dict.fromkeys(entries[i : i + STEPS])) for i in range(0, len(entries), STEPS)]


def cached(schedule: Any, *callbacks: Callback, views: int = 0, **options: Any) -> Run:
    return Run(schedule, FrozenPrefixCache(views), *callbacks, **options)

"""Write what was predicted for each picture."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from typing_extensions import override


class PredictionWriter(BasePredictionWriter):
    """Write a table of all predictions: file, predicted class, probability of each class.

    The rows come in the order of the dataset, each once, from however many processes. The file
    appears when it is complete.

    Args:
        path: The CSV file; by default `predictions.csv` in the folder of the logs.
    """

    def __init__(self, path: str | None = None) -> None:
        super().__init__("batch")
        self.path = path
        self._rows: dict[int, list[float]] = {}

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rows = {}

    @override
    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Tensor,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        # Without indices the loader is none of ours: then batches come in order, on one device.
        start = len(self._rows)
        indices = batch_indices or range(start, start + len(prediction))
        self._rows.update(zip(indices, prediction.float().tolist(), strict=True))

    @override
    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rows = _gather(self._rows, trainer.world_size)
        folder = trainer.log_dir or trainer.default_root_dir  # asks all ranks: not below
        if not trainer.is_global_zero:
            return
        classes = list(
            getattr(pl_module, "classes", map(str, range(len(next(iter(rows.values()))))))
        )
        names = getattr(getattr(trainer, "datamodule", None), "predict_names", None)
        path = Path(self.path or Path(folder) / "predictions.csv")
        write_predictions(path, rows, classes=classes, names=names)
        rank_zero_info(f"Predictions for {len(rows)} pictures are in {path}.")


def write_predictions(
    path: Path,
    rows: dict[int, list[float]],
    *,
    classes: Sequence[str],
    names: Sequence[str] | None = None,
) -> None:
    """Write a CSV file of probabilities, in the order of the pictures' numbers.

    Args:
        path: Written beside its place first, so that no half file is ever there.
        rows: From a picture's number to the probability of each class.
        classes: The classes' names.
        names: The pictures' names; by default their numbers.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "predicted", *classes])
        for number, probabilities in sorted(rows.items()):
            best = max(range(len(classes)), key=probabilities.__getitem__)
            name = names[number] if names is not None else number
            writer.writerow([name, classes[best], *(f"{p:.6g}" for p in probabilities)])
    os.replace(partial, path)


def _gather(rows: dict[int, list[float]], world_size: int) -> dict[int, list[float]]:
    """The rows of all processes."""
    if world_size == 1:
        return rows
    parts: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(parts, rows)
    return {number: row for part in parts for number, row in part.items()}

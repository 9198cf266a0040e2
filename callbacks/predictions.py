"""Write the predictions for all images to a table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from typing_extensions import override

from lit_finetune.files.atomic_write import atomic_write
from lit_finetune.files.terminal_text import as_cell, printable


class PredictionWriter(BasePredictionWriter):
    r"""Write a table of all predictions: file, predicted class, probability of each class.

    The rows have the order of the dataset, each image once, also with several processes. The file
    appears when it is complete. It is safe in a spreadsheet and in a terminal: in the names of
    files and classes a control character is written as `\x1b`, a backslash is doubled, and a name
    that would be a formula begins with an apostrophe.

    Args:
        path: The CSV file; by default `predictions.csv` in the folder of the logs.

    Raises:
        ValueError: There are several loaders; or several processes, and the images have no index.
    """

    def __init__(self, path: str | None = None) -> None:
        super().__init__("batch")
        self.path = path
        self._indices: list[int] = []
        self._probabilities: list[Tensor] = []

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._indices, self._probabilities = [], []

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
        if dataloader_idx > 0:
            raise ValueError("Predictions of several loaders are no table: give a single loader.")
        if not batch_indices:  # as of a stream
            if trainer.world_size > 1:
                raise ValueError(
                    "The loader gives no indices of its pictures, so predictions of several"
                    " processes cannot be put in order: predict on one device."
                )
            start = len(self._indices)
            batch_indices = range(start, start + len(prediction))
        self._indices += batch_indices
        self._probabilities.append(prediction.float().cpu())

    @override
    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        indices, probabilities = _gather(self._indices, self._probabilities, trainer.world_size)
        folder = trainer.log_dir or trainer.default_root_dir  # a broadcast, so in all processes
        if not trainer.is_global_zero:
            return
        path = Path(self.path or Path(folder) / "predictions.csv")
        rows = rows_by_index(indices)
        names = getattr(getattr(trainer, "datamodule", None), "predict_names", None)
        write_predictions(
            path,
            probabilities[list(rows.values())],
            names=[names[index] if names else str(index) for index in rows],
            classes=getattr(pl_module, "classes", None) or range(probabilities.shape[1]),
        )
        rank_zero_info(f"Predictions for {len(rows)} pictures are in {printable(path)}")


def write_predictions(
    path: Path, probabilities: Tensor, *, names: Sequence[str], classes: Sequence[Any]
) -> None:
    """Write a table as a CSV file, completely or not at all.

    Args:
        path: The file; its folder is created.
        probabilities: Of each image for each class (N, C).
        names: The names of the images.
        classes: The names of the classes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    class_cells = [_quote(as_cell(name)) for name in classes]
    best = probabilities.argmax(dim=1).tolist()
    with atomic_write(path) as file:
        file.write(_csv_line(["file", "predicted", *class_cells]))
        for name, predicted, row in zip(names, best, probabilities, strict=True):
            cells = [f"{p:.6g}" for p in row.tolist()]
            file.write(_csv_line([_quote(as_cell(name)), class_cells[predicted], *cells]))


def rows_by_index(indices: Sequence[int]) -> dict[int, int]:
    """The row of each image, by its index and in the order of the dataset.

    A sampler for several processes may repeat an image: the last of its rows counts.

    >>> rows_by_index([2, 0, 1, 0])
    {0: 3, 1: 2, 2: 0}
    """
    rows = {index: row for row, index in enumerate(indices)}
    return dict(sorted(rows.items()))


def _csv_line(cells: Sequence[str]) -> bytes:
    return f"{','.join(cells)}\r\n".encode()


def _quote(cell: str) -> str:
    """A cell, in quotes if a spreadsheet of any locale would split it.

    >>> _quote("ants"), _quote("ants; bees")
    ('ants', '"ants; bees"')
    """
    return f'"{cell.replace(chr(34), chr(34) * 2)}"' if set(cell) & set(',;|"') else cell


def _gather(
    indices: list[int], probabilities: list[Tensor], world_size: int
) -> tuple[list[int], Tensor]:
    """The indices and the probabilities of all processes."""
    parts: list[Any] = [(indices, probabilities)] * world_size
    if world_size > 1:
        torch.distributed.all_gather_object(parts, (indices, probabilities))
    all_indices = [index for part, _ in parts for index in part]
    return all_indices, torch.cat([rows for _, part in parts for rows in part])

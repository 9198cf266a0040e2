"""Write what was predicted for each picture."""

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

    The rows come in the order of the dataset, each once, from however many processes. The file
    appears when it is complete. It can be opened with a spreadsheet and shown in a terminal: in
    names of files and classes a control character is written as `\x1b`, a backslash as two, and an
    apostrophe stands before what would begin a formula.

    Args:
        path: The CSV file; by default `predictions.csv` in the folder of the logs.

    Raises:
        ValueError: The pictures' places in the dataset are not known, so that they have no order.
    """

    def __init__(self, path: str | None = None) -> None:
        super().__init__("batch")
        self.path = path
        self._numbers: list[int] = []
        self._probabilities: list[Tensor] = []

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._numbers, self._probabilities = [], []

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
            raise ValueError("Predictions of several loaders are no table: give a single one.")
        if not batch_indices:  # such as those of a stream
            if trainer.world_size > 1:
                raise ValueError(
                    "The loader does not number its pictures, so those of several processes have"
                    " no order: predict on one device."
                )
            batch_indices = range(len(self._numbers), len(self._numbers) + len(prediction))
        self._numbers += batch_indices
        self._probabilities.append(prediction.float().cpu())

    @override
    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        numbers, probabilities = _gather(self._numbers, self._probabilities, trainer.world_size)
        folder = trainer.log_dir or trainer.default_root_dir  # asks all processes: not below
        if not trainer.is_global_zero:
            return
        path = Path(self.path or Path(folder) / "predictions.csv")
        places = {number: place for place, number in enumerate(numbers)}  # a repeated one once
        order = sorted(places)
        names = getattr(getattr(trainer, "datamodule", None), "predict_names", None)
        write_predictions(
            path,
            probabilities[[places[number] for number in order]],
            names=[names[number] if names else str(number) for number in order],
            classes=getattr(pl_module, "classes", None) or range(probabilities.shape[1]),
        )
        rank_zero_info(f"Predictions for {len(order)} pictures are in {printable(path)}")


def write_predictions(
    path: Path, probabilities: Tensor, *, names: Sequence[str], classes: Sequence[Any]
) -> None:
    """Write a table as a CSV file, which holds old content or new, and never a part.

    Args:
        path: The file; folders above it are made.
        probabilities: Of each picture (N) for each class.
        names: The pictures' names.
        classes: The classes' names.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    named = [_quoted(as_cell(name)) for name in classes]
    best = probabilities.argmax(dim=1).tolist()
    with atomic_write(path) as file:
        file.write(_line(["file", "predicted", *named]))
        for name, predicted, row in zip(names, best, probabilities, strict=True):
            file.write(
                _line(
                    [_quoted(as_cell(name)), named[predicted], *(f"{p:.6g}" for p in row.tolist())]
                )
            )


def _line(cells: Sequence[str]) -> bytes:
    return f"{','.join(cells)}\r\n".encode()


def _quoted(cell: str) -> str:
    """A cell in quotes where a spreadsheet of any country would split it.

    >>> _quoted("ants"), _quoted("ants; bees")
    ('ants', '"ants; bees"')
    """
    return f'"{cell.replace(chr(34), chr(34) * 2)}"' if set(cell) & set(',;|"') else cell


def _gather(
    numbers: list[int], probabilities: list[Tensor], world_size: int
) -> tuple[list[int], Tensor]:
    """The pictures' numbers and their probabilities, of all processes."""
    parts: list[Any] = [(numbers, probabilities)] * world_size
    if world_size > 1:
        torch.distributed.all_gather_object(parts, (numbers, probabilities))
    together = torch.cat([rows for _, part in parts for rows in part])
    return [number for numbers, _ in parts for number in numbers], together

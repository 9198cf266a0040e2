"""The table of predictions."""

import csv
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, TensorDataset

from lit_finetune import FinetuneClassifier
from lit_finetune.callbacks import PredictionWriter
from lit_finetune.datamodules import ImageFolderDataModule
from lit_finetune.files.terminal_text import text_of_cell

write_predictions = sys.modules[PredictionWriter.__module__].write_predictions

CLASSES = ["Bär, groß", 'the "other"', "Ωmega"]
NAMES = ["a,b.png", "Käfer.png", 'sub/say "x".png', "sub/ two  spaces.png", "z.png"]


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def make_network() -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 3))


def predict(model: LightningModule, data: Any, path: Path | None = None, **options: Any) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        callbacks=[PredictionWriter(str(path) if path else None)],
        **options,
    )
    trainer.predict(model, data, return_predictions=False)
    return trainer


@pytest.fixture
def data(tmp_path: Path) -> ImageFolderDataModule:
    """Pictures to predict, and folders of classes, under names that a table could break on."""
    generator = torch.Generator().manual_seed(0)
    places = [f"pictures/train/{name}/1.png" for name in CLASSES]
    for place in [*places, *(f"new/{name}" for name in NAMES)]:
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(256, (8, 8, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(path)
    return ImageFolderDataModule(
        tmp_path / "pictures",
        predict_dir=tmp_path / "new",
        val_split=0,
        batch_size=2,
        image_size=8,
        num_workers=0,
    )


def test_each_picture_has_its_name_its_class_and_its_probabilities(
    data: ImageFolderDataModule, tmp_path: Path
) -> None:
    model = FinetuneClassifier(make_network(), num_classes=3)
    model.classes = data.classes

    predict(model, data, tmp_path / "deep/down/table.csv")

    rows = read(tmp_path / "deep/down/table.csv")
    assert sorted(row["file"] for row in rows) == sorted(NAMES)
    assert [row["file"] for row in rows] == data.predict_names
    model.data_config = data.data_config
    for row in rows:
        assert list(row) == ["file", "predicted", *data.classes]
        expected = model.predict_image(tmp_path / "new" / row["file"])
        assert row["predicted"] == next(iter(expected))
        written = {name: float(row[name]) for name in data.classes}
        assert written == pytest.approx(expected, abs=1e-5)
        assert sum(written.values()) == pytest.approx(1, abs=1e-5)


def test_the_table_is_beside_the_logs_unless_asked_for_elsewhere(
    data: ImageFolderDataModule, tmp_path: Path
) -> None:
    model = FinetuneClassifier(make_network(), num_classes=3)
    model.classes = data.classes

    predict(model, data, default_root_dir=tmp_path / "root")

    assert [path.name for path in (tmp_path / "root").iterdir()] == ["predictions.csv"]


def test_a_second_prediction_takes_the_place_of_the_first(
    data: ImageFolderDataModule, tmp_path: Path
) -> None:
    model = FinetuneClassifier(make_network(), num_classes=3)
    model.classes = data.classes
    trainer = predict(model, data, tmp_path / "table.csv")
    first = read(tmp_path / "table.csv")

    trainer.limit_predict_batches = 2
    trainer.predict(model, data, return_predictions=False)

    assert read(tmp_path / "table.csv") == first[:4]
    assert not list(tmp_path.glob("*.part")) + list(tmp_path.glob(".*.part"))


class Echo(LightningModule):
    """Predicts what it is given."""

    def predict_step(self, batch: list[Tensor], batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        return batch[0]


ROWS = torch.eye(5)[:, :3] / 2


def test_any_module_and_any_loader_will_do(tmp_path: Path) -> None:
    predict(Echo(), DataLoader(TensorDataset(ROWS), batch_size=2), tmp_path / "table.csv")

    rows = read(tmp_path / "table.csv")
    assert [row["file"] for row in rows] == ["0", "1", "2", "3", "4"]
    assert [row["predicted"] for row in rows] == ["0", "1", "2", "0", "0"]
    assert [float(row["1"]) for row in rows] == [0, 0.5, 0, 0, 0]


def test_half_precision_is_written_too(tmp_path: Path) -> None:
    loader = DataLoader(TensorDataset(ROWS.bfloat16()), batch_size=2)

    predict(Echo(), loader, tmp_path / "table.csv")

    assert float(read(tmp_path / "table.csv")[1]["1"]) == 0.5


class Stream(torch.utils.data.IterableDataset[Tensor]):
    """Pictures without numbers."""

    def __iter__(self) -> Any:
        return iter((row,) for row in ROWS)


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(Stream(), batch_size=2),
        DataLoader(
            TensorDataset(ROWS),
            batch_sampler=BatchSampler(SequentialSampler(range(5)), 2, drop_last=False),
        ),
    ],
)
def test_pictures_without_numbers_come_in_their_order(loader: Any, tmp_path: Path) -> None:
    predict(Echo(), loader, tmp_path / "table.csv")

    rows = read(tmp_path / "table.csv")
    assert [[float(row[name]) for name in "012"] for row in rows] == ROWS.tolist()


def test_several_loaders_are_refused(tmp_path: Path) -> None:
    loaders = [DataLoader(TensorDataset(ROWS), batch_size=2) for _ in range(2)]

    with pytest.raises(ValueError, match="several loaders"):
        predict(Echo(), loaders, tmp_path / "table.csv")

    assert not (tmp_path / "table.csv").exists()


HOSTILE = [
    "=1+1",
    "+a",
    "-a",
    "@a",
    "'a",
    " =a",
    "\uff1da",
    "a;=b",
    "a\x1b[2J",
    "a\tb",
    "a\nb",
    "a\u202eb",
]


def test_names_are_text_to_a_spreadsheet_and_a_terminal_and_can_be_had_back(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    probabilities = torch.eye(len(HOSTILE))

    write_predictions(table, probabilities, names=HOSTILE, classes=HOSTILE)

    with table.open(newline="", encoding="utf-8") as file:
        (head, *rows) = csv.reader(file)
    for cell in [cell for row in (head, *rows) for cell in row]:
        assert cell.isprintable()
        assert not cell.strip().startswith(("=", "+", "-", "@", "\uff1d"))
    assert [text_of_cell(cell) for cell in head[2:]] == HOSTILE
    assert [[text_of_cell(cell) for cell in row[:2]] for row in rows] == [[n, n] for n in HOSTILE]
    semicolons = csv.reader(table.read_text().splitlines(), delimiter=";")
    assert not [cell for row in semicolons for cell in row if cell.startswith("=")]


def test_a_link_in_the_place_of_the_table_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    for name in ("table.csv", ".table.csv.part"):
        (tmp_path / name).symlink_to(tmp_path / "victim")

    write_predictions(tmp_path / "table.csv", torch.eye(2), names=["a", "b"], classes=["c", "d"])

    assert (tmp_path / "victim").read_text() == "precious"
    assert read(tmp_path / "table.csv")[0]["predicted"] == "c"

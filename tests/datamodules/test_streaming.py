"""Pictures packed into files and streamed are the pictures that were packed."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image

from lit_finetune import FinetuneClassifier
from lit_finetune.datamodules import (
    ImageFolderDataModule,
    StreamingImageDataModule,
    write_shards,
)

pytest.importorskip("litdata")
SIZE = {"image_size": 16, "resize_size": 16, "num_workers": 0, "batch_size": 4}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, count in (("ants", 17), ("bees", 16)):
        (folder / name).mkdir()
        for number in range(count):
            pixels = rng.integers(0, 256, (20 + number, 24, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="module")
def shards(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "shards"
    write_shards(ImageFolderDataModule(photos, test_split=0.2), folder)
    return folder


def streamed(shards: Path | str, **options: Any) -> StreamingImageDataModule:
    return StreamingImageDataModule(shards, **{**SIZE, **options})


def test_classes_counts_and_evaluation_are_those_of_the_folder(photos: Path, shards: Path) -> None:
    folder = ImageFolderDataModule(photos, test_split=0.2, **SIZE)
    stream = streamed(shards)
    for data in (folder, stream):
        data.setup("fit")
        data.setup("test")
        data.setup("predict")

    assert stream.classes == folder.classes == ["ants", "bees"]
    assert stream.class_counts == folder.class_counts
    assert stream.predict_names == folder.predict_names
    for mine, original in zip(stream.test_dataloader(), folder.test_dataloader(), strict=True):
        assert all(map(torch.equal, mine, original))
    for mine, original in zip(stream.val_dataloader(), folder.val_dataloader(), strict=True):
        assert all(map(torch.equal, mine, original))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_brings_each_picture_at_most_once_and_varied(
    shards: Path, num_workers: int
) -> None:
    stream = streamed(shards, num_workers=num_workers)
    stream.setup("fit")
    loader = stream.train_dataloader()

    first, second = ([images for images, _ in loader] for _ in range(2))
    pictures = torch.cat(first)
    assert len(loader) == len(first) > 0
    assert all(len(images) == SIZE["batch_size"] for images in first)
    assert len({tuple(image.flatten().tolist()) for image in pictures}) == len(pictures)
    assert not torch.equal(pictures, torch.cat(second))


def train(
    shards: Path, folder: Path, num_workers: int, resume: Path | None = None, **options: Any
) -> Any:
    seed_everything(0, verbose=False)
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1),
            ModelCheckpoint(folder, filename="end-{step}", save_top_k=-1),
        ],
    )
    model = FinetuneClassifier("timm/test_resnet", num_classes=2, **options)
    trainer.fit(model, streamed(shards, num_workers=num_workers), ckpt_path=resume)
    return model.state_dict()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_workers", "options"),
    [(0, {}), pytest.param(2, {"lr_scheduler": "constant"}, marks=pytest.mark.long)],
)  # the default scheduler asks how many steps there are before a checkpoint is read
def test_a_resumed_run_ends_with_the_same_weights(
    shards: Path, tmp_path: Path, num_workers: int, options: dict[str, Any]
) -> None:
    whole = train(shards, tmp_path / "whole", num_workers, **options)

    for stop in ("step=3", "step=5", "end-step=5", "step=7"):  # the second: the last of an epoch
        checkpoint = tmp_path / "whole" / f"{stop}.ckpt"
        resumed = train(shards, tmp_path / stop, num_workers, checkpoint, **options)
        assert all(torch.equal(resumed[name], value) for name, value in whole.items()), stop


def test_an_address_is_fetched_as_from_a_store(shards: Path, tmp_path: Path) -> None:
    near, far = streamed(shards), streamed(f"local:{shards}", cache_dir=tmp_path)
    for data in (near, far):
        data.setup("fit")

    assert far.classes == near.classes
    assert far.class_counts == near.class_counts
    for mine, original in zip(far.val_dataloader(), near.val_dataloader(), strict=True):
        assert all(map(torch.equal, mine, original))
    labels = [label for _, labels in far.train_dataloader() for label in labels.tolist()]
    assert set(labels) == {0, 1}


def test_other_chunks_are_not_read(shards: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for path in shards.rglob("*"):
        target = other / path.relative_to(shards)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            target.write_bytes(path.read_bytes())
    index = other / "val" / "index.json"
    text = json.loads(index.read_text())
    text["config"]["data_format"] = ["pickle", "int", "int"]
    index.write_text(json.dumps(text))

    with pytest.raises(ValueError, match="pickled code"):
        streamed(other).setup("fit")


def test_a_folder_that_is_there_is_not_written_over(photos: Path, shards: Path) -> None:
    with pytest.raises(FileExistsError, match="is there already"):
        write_shards(ImageFolderDataModule(photos), shards)


def test_a_folder_that_is_not_packed_is_refused(photos: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no 'classes\.json'"):
        _ = streamed(photos).classes


def test_too_few_pictures_for_a_batch_are_refused(shards: Path) -> None:
    stream = streamed(shards, batch_size=1000)
    stream.setup("fit")

    with pytest.raises(ValueError, match="do not fill a batch of 1000"):
        stream.train_dataloader()


AWAY = [
    "../../chunk.bin",
    "/chunk.bin",
    "s3://bucket/chunk.bin",
    "..\\chunk.bin",
    "C:chunk.bin",
    "..",
]


@pytest.mark.parametrize("where", ["here", "fetched"])
@pytest.mark.parametrize("field", ["chunk", "updated_at"])
@pytest.mark.parametrize("name", [*AWAY, 3, None])
def test_an_index_does_not_leave_its_folder(
    shards: Path, tmp_path: Path, name: Any, where: str, field: str
) -> None:
    packed = tmp_path / "a" / "packed"
    shutil.copytree(shards, packed)
    path = packed / "train" / "index.json"
    index = json.loads(path.read_text())
    (packed / "train" / index["chunks"][0]["filename"]).rename(tmp_path / "chunk.bin")
    if field == "chunk":
        index["chunks"][0]["filename"] = name
    else:
        index["updated_at"] = name
    path.write_text(json.dumps(index))
    before = set(tmp_path.rglob("*"))
    address = packed if where == "here" else f"local:{packed}"

    with pytest.raises(ValueError, match=re.escape(repr(name))):
        streamed(address, cache_dir=tmp_path / "cache").setup("fit")

    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"config": {}, "chunks": [3]}'])
def test_a_damaged_index_is_told(shards: Path, tmp_path: Path, text: str) -> None:
    shutil.copytree(shards, tmp_path / "packed")
    (tmp_path / "packed" / "train" / "index.json").write_text(text)

    with pytest.raises(ValueError, match="no index of packed pictures"):
        streamed(tmp_path / "packed").setup("fit")


def test_a_kept_index_is_looked_at_as_well(shards: Path, tmp_path: Path) -> None:
    far = streamed(f"local:{shards}", cache_dir=tmp_path)
    far.setup("fit")
    next(iter(far.train_dataloader()))
    for path in tmp_path.rglob("index.json"):
        path.write_text(path.read_text().replace("chunk-", "../chunk-"))

    again = streamed(f"local:{shards}", cache_dir=tmp_path)
    again.setup("fit")
    with pytest.raises(ValueError, match=r"'\.\./chunk-"):
        again.train_dataloader()


def test_a_checkpoint_does_not_say_where_a_stream_is(shards: Path, tmp_path: Path) -> None:
    stream = streamed(shards)
    stream.setup("fit")
    loader = stream.train_dataloader()
    next(iter(loader))
    state = loader.state_dict()
    away = {"input_dir_path": "", "input_dir_url": f"local:{shards}/train"}
    state["dataset"] |= {**away, "cache_dir_path": str(tmp_path / "planted")}

    with pytest.raises(ValueError, match="only resume with the same files"):
        stream.train_dataloader().load_state_dict(state)

    assert not (tmp_path / "planted").exists()


def test_what_stands_beside_a_packed_folder_stays(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "shards.partial").mkdir()
    (tmp_path / "shards.partial" / "thesis.txt").write_text("precious")

    write_shards(ImageFolderDataModule(photos), tmp_path / "shards")

    assert (tmp_path / "shards.partial" / "thesis.txt").read_text() == "precious"
    assert {path.name for path in tmp_path.iterdir()} == {"shards", "shards.partial"}

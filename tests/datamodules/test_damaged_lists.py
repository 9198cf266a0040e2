"""Files that say which pictures there are, made or changed by somebody else."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lit_finetune.cli.command_line import main
from lit_finetune.datamodules import (
    ImageFolderDataModule,
    StreamingImageDataModule,
    write_shards,
)

DEEP = "[" * 100_000 + "]" * 100_000
LESS_DEEP = "[" * 500 + "]" * 500
CLASSES = ("ant", "bee")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in CLASSES:
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(6):
            picture = Image.new("RGB", (8, 8), (number * 20, 10 * len(name), 0))
            picture.save(tmp_path / "photos" / name / f"{number}.png")
    return tmp_path / "photos"


def split_of(photos: Path) -> tuple[Path, dict[str, Any]]:
    """A split file as it is written, and what it holds."""
    data = ImageFolderDataModule(photos)
    data.read_samples("train")
    return data.split_file, json.loads(data.split_file.read_text())


def in_both(stored: dict[str, Any]) -> str:
    name = stored["files"]["train"][0]
    stored["files"]["val"].append(name)
    return rf"{name}' in train and val"


def twice_in_one(stored: dict[str, Any]) -> str:
    name = stored["files"]["train"][-1]
    stored["files"]["train"].append(name)
    return rf"{name}' in train\."


def no_part(stored: dict[str, Any]) -> str:
    del stored["files"]["val"]
    return "has the parts"


def further_part(stored: dict[str, Any]) -> str:
    stored["files"]["more"] = []
    return "has the parts"


def a_text(stored: dict[str, Any]) -> str:
    stored["files"]["val"] = "ant/0.png"
    return "holds no split"


@pytest.mark.parametrize("change", [in_both, twice_in_one, no_part, further_part, a_text])
def test_a_split_that_cannot_be_is_refused(
    change: Callable[[dict[str, Any]], str], photos: Path
) -> None:
    file, stored = split_of(photos)
    told = change(stored)
    file.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=rf"{file.name}.*{told}"):
        ImageFolderDataModule(photos).read_samples("train")


@pytest.mark.parametrize("text", [DEEP, LESS_DEEP, "{", "\udcff", "[]", "3"])
def test_a_split_that_is_none_is_refused(text: str, photos: Path) -> None:
    file, _ = split_of(photos)
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=rf"{file.name}' holds no split"):
        ImageFolderDataModule(photos).read_samples("val")


@pytest.mark.parametrize(
    "text", [DEEP, LESS_DEEP, "[]", '{"ant/0.png": 3}', '{"ant/0.png": {"stamp": "x"}}', "{"]
)
def test_a_record_that_is_none_is_made_anew(text: str, photos: Path) -> None:
    (photos / ".lit_finetune_audit.json").write_text(text)
    (photos / "ant" / "0.png").write_bytes(b"no picture")
    data = ImageFolderDataModule(photos, on_corrupt="skip", val_split=0.0)
    with pytest.warns(UserWarning, match="cannot be read"):
        data.check_files()
    assert "ant/0.png" not in data.read_samples("train").names
    assert len(data.read_samples("train").names) == 11


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A packed folder of two pictures."""
    pytest.importorskip("litdata")
    for name in CLASSES:
        (tmp_path / "two" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), (10 * len(name), 0, 0)).save(tmp_path / "two" / name / "0.png")
    data = ImageFolderDataModule(tmp_path / "two", val_split=0.0)
    write_shards(data, tmp_path / "packed")
    return tmp_path / "packed"


def of_array(array: Any) -> Callable[[Path], object]:
    return lambda path: np.save(path, array, allow_pickle=True)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("classes.json", lambda path: path.write_text(DEEP)),
        ("classes.json", lambda path: path.write_text('{"classes": [1, {}]}')),
        ("classes.json", lambda path: path.write_text('{"classes": {"ant": 0}}')),
        ("train/names.txt", lambda path: path.write_text(f'"a"\n{DEEP}\n')),
        ("train/names.txt", lambda path: path.write_text('"a"\n')),
        ("train/names.txt", lambda path: path.write_text('"a"\n3\n')),
        ("train/labels.npy", lambda path: path.write_bytes(b"")),
        ("train/labels.npy", lambda path: path.write_bytes(b"\x93NUMPY\x01\x00 ")),
        ("train/labels.npy", of_array(np.array([{}, {}], dtype=object))),
        ("train/labels.npy", of_array(np.array([0.5, 1.0]))),
        ("train/labels.npy", of_array(np.array([0, -100]))),
        ("train/labels.npy", of_array(np.array([[0, 1]]))),
        ("train/labels.npy", of_array(np.array([0, 2]))),
    ],
)
def test_a_list_of_a_packed_folder_that_cannot_be_is_refused(
    name: str, write: Callable[[Path], object], packed: Path
) -> None:
    names = StreamingImageDataModule(str(packed)).read_samples("train").names
    assert names == ["ant/0.png", "bee/0.png"]
    write(packed / name)
    with pytest.raises(ValueError, match="damaged") as caught:
        _ = StreamingImageDataModule(str(packed)).read_samples("train").names
    assert "pickle" not in str(caught.value)


@pytest.mark.parametrize("how", ["fit", "predict"])
def test_pictures_in_no_class_are_shown_the_way_to_be_predicted(
    how: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flat = photos / "ant"
    data = ["--data=ImageFolderDataModule", f"--data.data_dir={flat}"]
    with pytest.raises(SystemExit):
        main(args=[how, "--model.backbone=squeezenet1_1", *data])
    assert f"--data.predict_dir={flat}" in capsys.readouterr().err


def in_chunk(key: str, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda index: index["chunks"][0].update({key: value})


def in_config(key: str, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda index: index["config"].update({key: value})


@pytest.mark.parametrize(
    "change",
    [
        *(in_chunk("chunk_size", value) for value in (True, None, 3, -1, 2.0, "2", 10**30)),
        *(in_chunk("chunk_bytes", value) for value in (True, None, 10**9, 0, [])),
        *(in_config("data_spec", value) for value in (-1, 10**30, "[1, {}]", "x", DEEP, None)),
        in_config("compression", "zstd"),
        lambda index: index["chunks"].clear(),
        lambda index: index["chunks"].append(index["chunks"][0]),
        lambda index: index["chunks"][0].pop("chunk_size"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(
    change: Callable[[dict[str, Any]], object], packed: Path
) -> None:
    path = packed / "train" / "index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"index\.json' is damaged: pack the pictures again"):
        StreamingImageDataModule(str(packed)).read_samples("train")


@pytest.mark.parametrize("kind", ["short", "missing"])
def test_a_chunk_that_does_not_fit_is_named(kind: str, packed: Path) -> None:
    chunk = packed / "train" / "chunk-0-0.bin"
    content = chunk.read_bytes()
    chunk.unlink()
    if kind == "short":
        chunk.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"damaged.*chunk-0-0\.bin' (has|is missing)"):
        StreamingImageDataModule(str(packed)).read_samples("train")


@pytest.mark.parametrize(("place", "num_workers"), [(4, 0), (8, 0), (17, 0), (21, 0), (21, 2)])
def test_a_damaged_chunk_is_named_when_it_is_read(
    place: int, num_workers: int, packed: Path
) -> None:
    chunk = packed / "train" / "chunk-0-0.bin"
    content = bytearray(chunk.read_bytes())
    content[place] ^= 64
    chunk.write_bytes(content)
    data = StreamingImageDataModule(str(packed), batch_size=1, num_workers=num_workers)
    data.setup("fit")
    with pytest.raises(ValueError, match=r"train/chunk-0-0\.bin is damaged"):
        list(data.train_dataloader())
    with pytest.raises(ValueError, match=r"train/chunk-0-0\.bin is damaged"):
        list(map(data.read_samples("train").load, range(2)))

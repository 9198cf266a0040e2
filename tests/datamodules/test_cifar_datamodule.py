import hashlib
import os
import pickle
import tarfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from torchvision import datasets

from lit_finetune.datamodules import CIFARDataModule

FINE = {datasets.CIFAR10: "labels", datasets.CIFAR100: "fine_labels"}


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def served(tmp_path, monkeypatch) -> Iterator[str]:
    """The address at which this machine serves the folder `source`."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "source"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(params=[datasets.CIFAR10, datasets.CIFAR100], ids=["cifar10", "cifar100"])
def archive(request, tmp_path, monkeypatch, served):
    """A small archive in the original format, with its md5 sums in place of the originals'."""
    kind = request.param
    num_classes = 10 if kind is datasets.CIFAR10 else 100
    folder = tmp_path / "source" / kind.base_folder
    folder.mkdir(parents=True)

    def put(name: str, content: object) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return md5(folder / name)

    def batch(count: int) -> dict[str, object]:
        labels = [i % num_classes for i in range(count)]
        pixels = np.repeat(np.array(labels, dtype=np.uint8)[:, None], 3072, axis=1)
        return {"data": pixels, FINE[kind]: labels}

    train = [[name, put(name, batch(10 * num_classes))] for name, _ in kind.train_list]
    test = [[name, put(name, batch(num_classes))] for name, _ in kind.test_list]
    names = {kind.meta["key"]: [f"class{i}" for i in range(num_classes)]}
    meta = {**kind.meta, "md5": put(kind.meta["filename"], names)}
    path = tmp_path / "source" / kind.filename
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, arcname=kind.base_folder)

    monkeypatch.setattr(kind, "train_list", train)
    monkeypatch.setattr(kind, "test_list", test)
    monkeypatch.setattr(kind, "meta", meta)
    monkeypatch.setattr(kind, "tgz_md5", md5(path))
    monkeypatch.setattr(kind, "url", f"{served}/{kind.filename}")
    return kind, path


def name_of(kind: type[datasets.CIFAR10]) -> str:
    return kind.__name__.lower()


def prepared(kind: type[datasets.CIFAR10], folder: Path, **options: object) -> CIFARDataModule:
    data = CIFARDataModule(name_of(kind), data_dir=folder, **options)
    data.prepare_data()
    return data


def test_what_is_downloaded_is_split_by_class_and_its_own_test_pictures_are_for_testing(
    archive, tmp_path, told
):
    kind, _ = archive
    data = prepared(kind, tmp_path / "data")
    data.setup("fit")
    data.setup("test")
    per_class = len(data.read_samples("train").names) // data.num_classes
    assert set(data.class_counts.values()) == {per_class}
    assert set(data.counts("val").values()) == {per_class // 9}
    assert set(data.counts("test").values()) == {1}
    assert f"{per_class * data.num_classes:,} train" in told.text
    assert os.listdir(tmp_path / "data") == [kind.base_folder]


def test_labels_belong_to_their_pictures(archive, tmp_path):
    kind, _ = archive
    data = prepared(kind, tmp_path)
    for part in ("train", "val", "test"):
        samples = data.read_samples(part)
        assert [samples.load(i).getpixel((0, 0))[0] for i in range(9)] == samples.labels[:9]


def test_an_archive_placed_by_hand_is_enough(archive, tmp_path):
    kind, path = archive
    (tmp_path / "data").mkdir()
    path.rename(tmp_path / "data" / kind.filename)
    data = prepared(kind, tmp_path / "data", download=False)
    assert data.read_samples("test").names[0] == f"{name_of(kind)}_test_00000"


def test_a_download_that_fails_leaves_nothing_and_says_how_to_place_the_file(archive, tmp_path):
    kind, path = archive
    path.unlink()
    (tmp_path / "data").mkdir()
    with pytest.raises(RuntimeError, match=f"put {kind.filename} .*md5 {kind.tgz_md5}.* into"):
        prepared(kind, tmp_path / "data")
    assert not os.listdir(tmp_path / "data")


def test_a_download_that_breaks_off_leaves_nothing(archive, tmp_path):
    kind, path = archive
    path.write_bytes(path.read_bytes()[:100])
    (tmp_path / "data").mkdir()
    with pytest.raises(RuntimeError, match="could not be downloaded"):
        prepared(kind, tmp_path / "data")
    assert not os.listdir(tmp_path / "data")


def test_without_download_missing_files_are_named(archive, tmp_path):
    kind, _ = archive
    with pytest.raises(RuntimeError, match=f"{kind.test_list[0][0]}.*`download` is off"):
        prepared(kind, tmp_path / "data", download=False)


def test_a_file_that_is_not_the_original_is_replaced(archive, tmp_path):
    kind, _ = archive
    prepared(kind, tmp_path / "data")
    broken = tmp_path / "data" / kind.base_folder / kind.test_list[0][0]
    broken.write_bytes(b"half")
    prepared(kind, tmp_path / "data")
    assert md5(broken) == kind.test_list[0][1]


def test_an_archive_that_is_not_the_original_is_told_when_the_download_fails(archive, tmp_path):
    kind, path = archive
    path.unlink()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / kind.filename).write_bytes(b"half")
    with pytest.raises(RuntimeError, match="The archive in that folder has another md5 sum"):
        prepared(kind, tmp_path / "data")


@pytest.mark.parametrize(("name", "count"), [("cifar10", 10), ("cifar100", 100)])
def test_classes_are_known_without_the_files(tmp_path, name, count):
    data = CIFARDataModule(name, data_dir=tmp_path)
    assert data.num_classes == len(set(data.classes)) == count
    assert data.classes == sorted(data.classes)


def test_a_network_for_cifar_sees_the_pictures_as_they_are(archive, tmp_path, trainer, network):
    kind, _ = archive
    data = prepared(kind, tmp_path / "data", image_size=32, mean=0.0, std=1.0, num_workers=0)
    data.setup("test")
    pixels, _ = data.test_dataloader().dataset[7]
    assert pixels.shape == (3, 32, 32)
    assert (pixels * 255).round().unique().tolist() == [7]


def test_another_data_set_is_refused():
    with pytest.raises(ValueError, match="Did you mean 'cifar10'"):
        CIFARDataModule("cifar101")

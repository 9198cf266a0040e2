"""A file of another framework is called by its name, with what to do.

What the libraries write is not made here, for they are not installed: the beginnings of their files
are, as they wrote them (onnx, TensorFlow, Keras, coremltools, OpenVINO, PaddlePaddle, gguf).
"""

import gzip
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lit_finetune.checkpoints.read import read_checkpoint
from lit_finetune.weights.load import load_weights, read_state_dict

ONNX = b"\x08\x08\x12\x07pytorch\x3a\x10" + bytes(16)
FLAX = b"\x81\xa6params\x81\xa4Conv\x80" + bytes(64)
TFLITE = b"\x1c\x00\x00\x00TFL3" + bytes(64)
HDF5 = b"\x89HDF\r\n\x1a\n" + bytes(64)
COREML = b"\x08\x04\x12\x30" + bytes(64)
NUMBERS = np.random.default_rng(0).normal(size=64).astype("float32").tobytes()
TENSORFLOW = bytes.fromhex("57fb808b247547db")
CONVERT = "convert it"


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.onnx", ONNX, "ONNX"),
        ("a.pth", ONNX, "ONNX"),
        ("a.msgpack", FLAX, "Flax"),
        ("a.pth", FLAX, "Flax"),
        ("a.tflite", TFLITE, "TensorFlow Lite"),
        ("a.pth", TFLITE, "TensorFlow Lite"),
        ("a.h5", HDF5, "HDF5"),
        ("a.mlmodel", COREML, "Core ML"),
        ("a.pb", NUMBERS, "TensorFlow"),
        ("a.pb", ONNX, "ONNX"),
    ],
)
def test_a_foreign_file_is_named(tmp_path: Path, name: str, content: bytes, what: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{what}.*convert it.*torch\.save") as refused:
        read_state_dict(tmp_path / name)
    assert "damaged" not in str(refused.value)


@pytest.mark.parametrize(
    ("member", "what"),
    [("model.weights.h5", "Keras"), ("saved_model.pb", "Keras or TensorFlow")],
)
@pytest.mark.parametrize("name", ["a.keras", "a.pth"])
def test_a_foreign_archive_is_named(tmp_path: Path, name: str, member: str, what: str) -> None:
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr(member, HDF5)
    with pytest.raises(ValueError, match=rf"{what}.*convert it"):
        read_state_dict(tmp_path / name)


def test_arrays_of_numpy_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", weight=np.ones(3))
    with pytest.raises(ValueError, match=r"NumPy archive \(\.npz\).*convert it"):
        read_state_dict(tmp_path / "a.npz")


@pytest.mark.parametrize("before", ["", "\ufeff", "\n  "])
@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("<div>Sign in</div>", "a web page"),
        ("<!DOCTYPE html><html>", "a web page"),
        ('<?xml version="1.0"?>\n<html xmlns="http://www.w3.org/1999/xhtml">', "a web page"),
        ('<?xml version="1.0"?>\n<net name="a">', "an XML file"),
    ],
)
def test_a_page_in_the_place_of_a_file_is_called_so(
    tmp_path: Path, before: str, content: str, what: str
) -> None:
    (tmp_path / "a.pth").write_text(before + content, encoding="utf-8")
    with pytest.raises(ValueError, match=what):
        read_state_dict(tmp_path / "a.pth")


def writes(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def dumped(compress: object = 0, *, to: str = "joblib") -> bytes:
    arrays = {"conv1.weight": np.ones((4, 3, 3, 3), "float32")}
    file = io.BytesIO()
    joblib.dump(arrays, file, compress=compress)
    return file.getvalue() if to == "joblib" else pickle.dumps(arrays, protocol=int(to))


def zipped(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, b"something")
    return file.getvalue()


PADDLE = {"0.weight": np.ones(3), "StructuredToParameterName@@": {"0.weight": "conv2d_0.w_0"}}
CONTENTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty.*download"),
    "zeros": (bytes(5000), "zeros.*cut short.*download"),
    "json": (b'[\n  {"image_id": 1}]', "JSON.*weights file"),
    "config of hugging face": (b'{"architectures": ["ViT"]}', "config of a Hugging Face.*hf/"),
    "index under another name": (b'{"metadata": {}, "weight_map": {}}', r"index.*\.index\.json"),
    "keras, described": (b'{"class_name": "Sequential"}', "description of a Keras model"),
    "tensorflow.js": (b'{"format": "layers", "modelTopology": {}}', f"TensorFlow.js.*{CONVERT}"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "git lfs pull"),
    "git-annex": (b"/annex/objects/SHA256E-s9--0.pth\n", "git-annex.*git annex get"),
    "dvc": (b"outs:\n- md5: 12\n  path: a.pth", "DVC pointer.*dvc pull"),
    "text": (b"Entry not found", "a text, no weights file.*'Entry not found'.*download"),
    "utf-16": ("a: b\n".encode("utf-16"), "a text.*'a: b'"),
    "server": (b"<?xml version='1.0'?><Error><Code>AccessDenied", "server.*download or copy it"),
    "openvino, no prolog": (b'<net name="a" version="11">', f"OpenVINO.*{CONVERT}"),
    "tensorflow, list": (b'model_checkpoint_path: "ck-1"', f"TensorFlow checkpoint.*{CONVERT}"),
    "tensorflow, v1 and .index": (bytes(30) + b"\x01" + TENSORFLOW, f"TensorFlow.*{CONVERT}"),
    "tensorflow, frozen": (
        b"\n\xa3\x07\n\x06conv/w\x12\x05Const*" + NUMBERS,
        "TensorFlow.*convert",
    ),
    "tensorflow, meta": (b"\n\xa1\x07\x12\xfa\x06\n^\n\x10AssignVariableOp\x12\x0c", "TensorFlow"),
    "savedmodel": (
        b"\x08\x01\x12\xa3\x95\x02\n\x81\x15\x12\xd1\x14\n^",
        "SavedModel of TensorFlow",
    ),
    "core ml": (b"\x08\x04\x12\xc9\x01\n\x11\n\x01x\x1a\x0c*\n\n\x04", f"Core ML.*{CONVERT}"),
    "core ml, weights": (b"\x01\x00\x00\x00\x02" + bytes(60), f"Core ML.*{CONVERT}"),
    "onnx without producer": (b"\x08\x0e:\xaf\x07\n\x0f\n\x01x", f"ONNX.*{CONVERT}"),
    "darknet": (
        bytes([0, 0, 0, 0, 2, 0, 0, 0, 5, 0, 0, 0, 0, 212, 2, 0]) + NUMBERS,
        f"Darknet.*{CONVERT}",
    ),
    "mxnet": (b"\x12\x01" + bytes(14) + b"\x02" + bytes(7), f"MXNet.*{CONVERT}"),
    "paddle": (pickle.dumps(PADDLE, protocol=4), r"PaddlePaddle.*paddle\.load"),
    "paddle, parameters": (
        bytes(16) + b"\x04\x00\x00\x00\x08\x05\x10\x08" + bytes(20),
        f"PaddlePaddle.*{CONVERT}",
    ),
    "gguf": (b"GGUF\x03\x00\x00\x00\x01" + bytes(20), "GGUF.*quantised.*safetensors"),
    "lua torch": (b"\x04\x00\x00\x00\x01\x00\x00\x00\x03\x00\x00\x00V 1\r\x00", "before PyTorch"),
    "caffe": (b"\n\x09CaffeNet0\xa2\x06\x01", f"Caffe.*{CONVERT}"),
    "pickle, protocol 0": (dumped(to="0"), r"pickle of NumPy arrays.*pickle\.load"),
    "pickle, protocol 1": (dumped(to="1"), r"pickle of NumPy arrays.*pickle\.load"),
    "pickle, protocol 4": (dumped(to="4"), r"pickle of NumPy arrays.*pickle\.load"),
    "pickle of objects": (pickle.dumps(nn.Linear(1, 1), 0), r"any code.*torch\.save\(model"),
    "joblib": (dumped(), r"joblib.*joblib\.load"),
    "joblib, zlib": (dumped(3), r"zlib.*joblib\.load"),
    "joblib, gzip": (dumped(("gzip", 3)), r"gzip.*joblib\.load"),
    "joblib, lzma": (dumped(("lzma", 3)), r"lzma.*joblib\.load"),
    "lz4": (bytes.fromhex("04224d184040c0") + bytes(30), "lz4: unpack it"),
    "gzip of a page": (gzip.compress(b"<html>Sign in"), "gzip, and in it is a web page"),
    "gzip of weights": (gzip.compress(zipped("a/data.pkl")), "gzip: unpack it first"),
    "npy": (b"\x93NUMPY\x01\x00v\x00{'descr': '|O'", rf"\.npy.*{CONVERT}.*numpy\.load"),
    "zip of pictures": (zipped("a/", "a/1.jpg", "a/2.PNG"), "zip archive of pictures.*data_dir"),
    "zip of weights": (zipped("README.md", "a/b.pth"), r"zip archive.*unpack it first.*'b\.pth'"),
    "zip of something": (zipped("a.txt"), "zip archive.*unpack it first.*'a.txt'"),
}


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "a", "a.ckpt"])
def test_a_file_is_known_by_its_content_whatever_it_is_called(
    tmp_path: Path, content: str, name: str
) -> None:
    written, what = CONTENTS[content]
    (tmp_path / name).write_bytes(written)
    with pytest.raises(ValueError, match=rf"(?s){name} is .*{what}") as refused:
        read_state_dict(tmp_path / name)
    message = str(refused.value)
    assert "weights_only" not in message
    assert "\n" not in message
    assert len(message) < 500


@pytest.mark.parametrize("content", ["git lfs", "paddle", "text", "core ml"])
def test_a_checkpoint_that_is_something_else_is_called_so_too(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.ckpt").write_bytes(CONTENTS[content][0])
    what = CONTENTS[content][1].replace("weights file", "checkpoint")
    with pytest.raises(ValueError, match=rf"(?s)a\.ckpt is no checkpoint: it is .*{what}"):
        read_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    ("name", "beside", "what"),
    [
        ("net.bin", "net.xml", "OpenVINO"),
        ("net.bin", "net.param", "ncnn"),
        ("ck-1.data-00000-of-00001", "ck-1.index", "TensorFlow checkpoint"),
        ("net.bin", "other.xml", r"neither as a file of `torch\.save` nor of safetensors"),
    ],
)
def test_bare_numbers_are_known_by_their_name_and_what_is_beside_them(
    tmp_path: Path, name: str, beside: str, what: str
) -> None:
    (tmp_path / beside).write_text("7767517")
    (tmp_path / name).write_bytes(NUMBERS)
    with pytest.raises(ValueError, match=what):
        read_state_dict(tmp_path / name)


FOLDERS: dict[str, tuple[list[str], str]] = {
    "empty": ([], "no files"),
    "savedmodel": (["saved_model.pb", "variables/variables.index"], f"SavedModel.*{CONVERT}"),
    "tensorflow": (["checkpoint", "ck-1.index", "ck-1.data-00000-of-00001"], "TensorFlow"),
    "tensorflow 1": (["checkpoint", "model.ckpt", "model.ckpt.meta"], "checkpoint of TensorFlow"),
    "keras": (["config.json", "metadata.json", "model.weights.h5"], f"Keras.*{CONVERT}"),
    "core ml": (["Manifest.json", "Data/com.apple.CoreML/model.mlmodel"], f"Core ML.*{CONVERT}"),
    "orbax": (["_METADATA", "manifest.ocdbt", "d/0"], f"Orbax.*{CONVERT}"),
    "hugging face": (["config.json", "model.safetensors"], "hf/.*weights/?`.*model.safetensors"),
    "adapter": (["adapter_config.json", "adapter_model.safetensors"], "adapter.*merge it"),
    "pictures": (["ants/1.jpg", "bees/2.jpg"], "holds pictures.*data_dir"),
    "a run": (["hparams.yaml", "checkpoints/last.ckpt"], r"checkpoints/last\.ckpt"),
    "unknown": (["notes.txt", "b.csv"], r"b\.csv, notes\.txt"),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_is_called_by_what_it_is(tmp_path: Path, kind: str) -> None:
    files, what = FOLDERS[kind]
    folder = tmp_path / "weights"
    folder.mkdir()
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    with pytest.raises(ValueError, match=rf"is a folder, not a weights file\..*{what}"):
        read_state_dict(folder)


def test_an_unpacked_file_is_read_once_it_is_packed_as_is_told(tmp_path: Path) -> None:
    state = nn.Linear(2, 3).state_dict()
    torch.save(state, tmp_path / "whole.pth")
    with zipfile.ZipFile(tmp_path / "whole.pth") as archive:
        archive.extractall(tmp_path)
    with pytest.raises(ValueError, match=r"zip -0 -r weights\.pth whole` in the folder above"):
        read_state_dict(tmp_path / "whole")

    with zipfile.ZipFile(tmp_path / "weights.pth", "w") as archive:
        for file in sorted((tmp_path / "whole").rglob("*")):
            archive.write(file, file.relative_to(tmp_path))
    read = read_state_dict(tmp_path / "weights.pth")
    assert all(torch.equal(read[name], value) for name, value in state.items())


@pytest.mark.slow
def test_an_exported_program_gives_its_weights_as_is_told(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    path = tmp_path / "a.pth"
    torch.export.save(torch.export.export(network, (torch.ones(1, 2),)), tmp_path / "a.pt2")
    (tmp_path / "a.pt2").rename(path)
    with pytest.raises(ValueError, match=r"torch\.export.*torch\.export\.load.*state_dict"):
        read_state_dict(path)
    path.rename(tmp_path / "a.pt2")
    torch.save(dict(torch.export.load(tmp_path / "a.pt2").state_dict), path)
    assert load_weights(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), path).share == 1


def test_what_is_no_file_is_called_so(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.pth")
    with pytest.raises(ValueError, match="is a pipe or a device"):
        read_state_dict(tmp_path / "a.pth")
    (tmp_path / "b.pth").symlink_to("../.git/annex/objects/x/y.pth")
    with pytest.raises(FileNotFoundError, match=r"link to .*not there.*git annex get"):
        read_state_dict(tmp_path / "b.pth")


def test_weights_are_read_whatever_they_are_called(tmp_path: Path) -> None:
    state = nn.Linear(2, 3).state_dict()
    torch.save(state, tmp_path / "a.safetensors")
    save_file(state, tmp_path / "a.pth")
    for name in ("a.safetensors", "a.pth"):
        read = read_state_dict(tmp_path / name)
        assert all(torch.equal(read[key], value) for key, value in state.items())

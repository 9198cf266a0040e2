"""A file of another framework is called by its name, with what to do."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from lit_finetune.weights import read_state_dict

ONNX = b"\x08\x08\x12\x07pytorch\x3a\x10" + bytes(16)
FLAX = b"\x81\xa6params\x81\xa4Conv\x80" + bytes(64)
TFLITE = b"\x1c\x00\x00\x00TFL3" + bytes(64)
HDF5 = b"\x89HDF\r\n\x1a\n" + bytes(64)
COREML = b"\x08\x04\x12\x30" + bytes(64)


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
        ("a.pb", ONNX, "TensorFlow"),
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

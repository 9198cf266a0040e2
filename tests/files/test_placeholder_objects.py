"""Plain data beside the weights does no harm, and is not made; code stays refused."""

import argparse
import datetime
import enum
import http
import operator
import os
import pathlib
import pickle
import sys
import types
import uuid
from collections import Counter, OrderedDict, defaultdict, deque
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.data import AttributeDict
from torch import nn
from torchvision.transforms import InterpolationMode

from lit_finetune.weights.load import load_weights, read_state_dict


class Choice(enum.Enum):
    ONE = 1


BESIDE = {
    "array": np.eye(3),
    "array of objects": np.array(["a", {"b": [1]}, None], dtype=object),
    "records": np.zeros(2, dtype=[("a", "f4"), ("b", "i8")]),
    "texts": np.array(["a", "bc"]),
    "empty array": np.zeros((0, 3)),
    "numbers": [np.float32(0.5), np.int64(3), np.bool_(True), np.datetime64("2020"), np.float32],
    "random state": np.random.RandomState(0).get_state(),
    "path": [Path("/a"), pathlib.PurePosixPath("b"), pathlib.PureWindowsPath("c")],
    "moment": [datetime.datetime.now(datetime.timezone.utc), datetime.date(2024, 5, 1)],
    "duration": datetime.timedelta(seconds=3),
    "defaultdict": defaultdict(list, loss=[0.5]),
    "nested defaultdict": defaultdict(dict, a=defaultdict(int, b=1)),
    "counter": Counter("abb"),
    "deque": deque([1.0, 2.0], maxlen=3),
    "ordered": OrderedDict(a=1),
    "arguments": argparse.Namespace(lr=0.1, out=Path("runs"), size=(2, 3)),
    "namespace": types.SimpleNamespace(lr=0.1),
    "attributes": AttributeDict(lr=0.1),
    "enums": [http.HTTPStatus.OK, InterpolationMode.BICUBIC, Choice.ONE],
    "others": [uuid.uuid4(), Decimal("1.5"), {1, 2}, frozenset("a"), range(3), slice(1, 2), 1j],
    "types": [float, dict, b"bytes", bytearray(b"a"), ..., torch.float16, torch.device("cpu")],
}


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize("kind", BESIDE)
def test_plain_data_beside_the_weights_does_no_harm(
    tmp_path: Path, kind: str, is_new: bool
) -> None:
    state = network().state_dict()
    content = {"before": BESIDE[kind], "model": state, "after": {"deep": [BESIDE[kind]]}}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=is_new)
    filled = network()
    assert load_weights(filled, tmp_path / "a.pth").share == 1
    assert all(value.equal(state[name]) for name, value in filled.state_dict().items())


def test_weights_in_a_defaultdict_are_found(tmp_path: Path) -> None:
    state = network().state_dict()
    torch.save(defaultdict(dict, model=defaultdict(None, state)), tmp_path / "a.pth")
    assert read_state_dict(tmp_path / "a.pth").keys() == state.keys()


def test_weights_that_are_numpy_arrays_are_named(tmp_path: Path) -> None:
    arrays = {name: value.numpy() for name, value in network().state_dict().items()}
    torch.save({"model": arrays}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"NumPy arrays: .*torch\.from_numpy"):
        read_state_dict(tmp_path / "a.pth")


class Calls:
    """Unpickled, it would call a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


HOSTILE = {
    "a call": lambda: Calls(os.mkdir, "sprung"),
    "open": lambda: Calls(open, "sprung", "w"),
    "eval": lambda: Calls(eval, "__import__('os').mkdir('sprung')"),
    "getattr": lambda: Calls(getattr, Calls(__import__, "os"), "mkdir"),
    "partial": lambda: partial(os.mkdir, "sprung"),
    "a method": lambda: Calls(operator.methodcaller, "mkdir"),
    "a path's method": lambda: Calls(Path.mkdir, Path("sprung")),
    "in an array": lambda: np.array([Calls(os.mkdir, "sprung")], dtype=object),
    "in a defaultdict": lambda: defaultdict(partial(os.mkdir, "sprung")),
    "beside an enum": lambda: [Choice.ONE, Calls(os.mkdir, "sprung")],
    "an unpickling": lambda: Calls(pickle.loads, b"cos\nmkdir\n(S'sprung'\ntR."),
    "an array's file": lambda: Calls(np.load, "sprung.npy"),
}


@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize("kind", HOSTILE)
def test_what_would_run_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, is_new: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    content = {"model": network().state_dict(), "extra": HOSTILE[kind]()}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=is_new)
    with pytest.raises(ValueError, match=r"a\.pth (holds more than tensors|is no weights file)"):
        load_weights(network(), tmp_path / "a.pth")
    assert not Path("sprung").exists()


def test_no_enum_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("not_here")
    module.Choice = enum.Enum("Choice", "ONE TWO", module="not_here")
    monkeypatch.setitem(sys.modules, "not_here", module)
    torch.save({"model": network().state_dict(), "x": module.Choice.TWO}, tmp_path / "a.pth")
    assert read_state_dict(tmp_path / "a.pth")
    monkeypatch.delitem(sys.modules, "not_here")
    (tmp_path / "not_here.py").write_text("open('sprung', 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"`not_here\.Choice` would be unpickled"):
        read_state_dict(tmp_path / "a.pth")
    assert not Path("sprung").exists()

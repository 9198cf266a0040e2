import json
import os
import random
import re
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lit_finetune.weights.load import read_state_dict


def small_network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def save_legacy(state: object, path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


def is_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


@pytest.mark.parametrize("save", [torch.save, save_legacy, save_file])
@pytest.mark.parametrize("name", ["a.pth", "a.pt", "a.th", "a.bin", "a.ckpt", "a.pth.tar", "a.t7"])
def test_a_file_is_read_by_what_it_is_and_not_by_its_suffix(tmp_path, save, name):
    state = small_network().state_dict()
    save(state, tmp_path / name)
    assert is_equal(read_state_dict(tmp_path / name), state)


def test_safetensors_are_read(tmp_path):
    state = small_network().state_dict()
    save_file(state, tmp_path / "a.safetensors")
    assert is_equal(read_state_dict(tmp_path / "a.safetensors"), state)


@pytest.mark.parametrize(
    "keys",
    ["state_dict", "model", "net", "model_state_dict", "ema", "my_own_name", "model.state_dict"],
)
def test_weights_are_found_under_any_entry(tmp_path, keys):
    state = small_network().state_dict()
    checkpoint = {"epoch": 3, "loss": torch.tensor(0.5), "optimizer": {"state": {0: {"m": state}}}}
    first, *rest = keys.split(".")
    torch.save(checkpoint | {first: {rest[0]: state} if rest else state}, tmp_path / "a.pth")
    assert is_equal(read_state_dict(tmp_path / "a.pth"), state)


def test_an_averaged_copy_is_preferred(tmp_path):
    state, averaged = small_network().state_dict(), small_network().state_dict()
    torch.save({"state_dict": state, "state_dict_ema": averaged}, tmp_path / "a.pth")
    assert is_equal(read_state_dict(tmp_path / "a.pth"), averaged)


def test_arguments_and_numpy_figures_beside_the_weights_do_no_harm(tmp_path):
    state = small_network().state_dict()
    beside = {"args": Namespace(lr=0.1), "best_acc": np.float64(0.9), "epoch": np.int64(3)}
    torch.save({"model": state, **beside}, tmp_path / "a.pth")
    assert is_equal(read_state_dict(tmp_path / "a.pth"), state)


def test_sharded_files_are_read_through_their_index(tmp_path):
    state = small_network().state_dict()
    shards = {name: f"model-{'0' in name}.safetensors" for name in state}
    for shard in set(shards.values()):
        part = {name: state[name] for name in state if shards[name] == shard}
        save_file(part, tmp_path / shard)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    assert is_equal(read_state_dict(tmp_path / "model.safetensors.index.json"), state)


def test_what_was_read_outlives_the_file(tmp_path):
    state = small_network().state_dict()
    torch.save(state, tmp_path / "a.pth")
    read = read_state_dict(tmp_path / "a.pth")
    (tmp_path / "a.pth").write_bytes(b"")
    assert is_equal(read, state)


class Trap:
    def __reduce__(self):
        return os.mkdir, ("sprung",)


@pytest.mark.parametrize("save", [torch.save, save_legacy])
def test_code_in_a_file_is_named_and_not_run(tmp_path, save):
    save({"state_dict": small_network().state_dict(), "extra": Trap()}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth holds more than tensors: `\w+\.mkdir` .*save"):
        read_state_dict(tmp_path / "a.pth")
    assert not Path("sprung").exists()


@pytest.mark.parametrize("save", [torch.save, save_legacy])
def test_a_whole_module_is_refused_with_what_to_do_instead(tmp_path, save):
    save(small_network(), tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"Sequential.*torch\.save\(model\.state_dict\(\)"):
        read_state_dict(tmp_path / "a.pth")


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_torchscript_is_refused_with_what_to_do_instead(tmp_path):
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"TorchScript.*torch\.jit\.load\('a\.pt'\)\.state_dict"):
        read_state_dict(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cut short or damaged"),
        (b"hello", "no weights file"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "git lfs pull"),
        (b"\x1f\x8b\x08\x00\x00\x00", "unpack it"),
    ],
)
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "a.ckpt"])
def test_what_is_no_weights_file_is_told_by_name(tmp_path, content, message, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{re.escape(name)} .*{message}"):
        read_state_dict(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3, "lr": 0.1}, "dict with the keys: epoch, lr"),
        ([torch.ones(1)], "list"),
        (torch.ones(1), "Tensor"),
        ({}, "dict"),
    ],
)
def test_a_file_without_named_tensors_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=f"a.pth has no tensors by name, but a {message}"):
        read_state_dict(tmp_path / "a.pth")


def test_an_index_without_a_map_is_refused(tmp_path):
    (tmp_path / "a.index.json").write_text("[]")
    with pytest.raises(ValueError, match=r"a\.index\.json .*weight_map"):
        read_state_dict(tmp_path / "a.index.json")


def test_a_missing_file_names_the_nearest_ones(tmp_path):
    (tmp_path / "resnet18.pth").touch()
    with pytest.raises(FileNotFoundError, match=r"'resnet8\.pth' .*Did you mean 'resnet18\.pth'"):
        read_state_dict(tmp_path / "resnet8.pth")
    with pytest.raises(FileNotFoundError, match=r"The folder has: resnet18\.pth"):
        read_state_dict(tmp_path / "x")
    with pytest.raises(FileNotFoundError, match="folder does not exist"):
        read_state_dict(tmp_path / "nowhere" / "resnet18.pth")
    with pytest.raises(ValueError, match=r"is a folder.* resnet18\.pth"):
        read_state_dict(tmp_path)


def damaged(content: bytes, chance: random.Random) -> bytes:
    """A file cut short, or with some bits turned over, more often near its start."""
    if chance.random() < 0.3:
        return content[: chance.randrange(len(content))]
    turned = bytearray(content)
    for _ in range(chance.choice([1, 2, 8])):
        turned[chance.randrange(chance.choice([64, 1000, len(content)]))] ^= 1 << chance.randrange(
            8
        )
    return bytes(turned)


@pytest.mark.parametrize("save", [torch.save, save_legacy, save_file])
def test_a_damaged_file_loads_or_is_a_value_error(tmp_path, save):
    path = tmp_path / "a.pth"
    save(small_network().state_dict(), path)
    content, chance = path.read_bytes(), random.Random(0)
    errors = []
    for _ in range(60):
        path.write_bytes(damaged(content, chance))
        try:
            read_state_dict(path)
        except Exception as error:
            errors.append(error)
    assert {type(error) for error in errors} == {ValueError}
    assert all(str(path) in str(error) for error in errors)


def test_turned_bits_in_the_numbers_are_noticed(tmp_path):
    state = {"weight": torch.zeros(1000)}
    torch.save(state, tmp_path / "a.pth")
    content = bytearray((tmp_path / "a.pth").read_bytes())
    content[content.index(bytes(4000)) + 2000] = 1
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        read_state_dict(tmp_path / "a.pth")


@pytest.fixture
def _no_checksums() -> Iterator[None]:
    torch.serialization.set_crc32_options(False)
    yield
    torch.serialization.set_crc32_options(True)


@pytest.mark.usefixtures("_no_checksums")
def test_a_file_saved_without_checksums_is_read(tmp_path):
    state = small_network().state_dict()
    torch.save(state, tmp_path / "a.pth")
    assert is_equal(read_state_dict(tmp_path / "a.pth"), state)

"""Damaged and hostile weights files: one clear error that names the file, and nothing runs."""

import json
import os
import random
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lit_finetune.weights.key_matching import best_mapping
from lit_finetune.weights.load import load_weights, read_state_dict

MARKER = Path("sprung")
ROUNDS = 60


class Trap:
    """What leaves a marker behind if anyone unpickles it."""

    def __reduce__(self) -> Any:
        return os.mkdir, (str(MARKER),)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def as_zip(state: dict[str, Any], path: Path) -> None:
    torch.save({"epoch": 1, "state_dict": state}, path)


def as_zip_without_checksums(state: dict[str, Any], path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, path)
    finally:
        torch.serialization.set_crc32_options(True)


def as_legacy(state: dict[str, Any], path: Path) -> None:
    torch.save({"net": state}, path, _use_new_zipfile_serialization=False)


def as_index(state: dict[str, Any], path: Path) -> None:
    save_file(state, path.with_name("model-00001-of-00001.safetensors"))
    shards = dict.fromkeys(state, "model-00001-of-00001.safetensors")
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": shards}))


def hostile(state: dict[str, Any], path: Path) -> None:
    torch.save({"state_dict": state, "extra": Trap()}, path)


def hostile_legacy(state: dict[str, Any], path: Path) -> None:
    torch.save({"a": Trap(), "net": state}, path, _use_new_zipfile_serialization=False)


FORMATS: dict[Callable[[dict[str, Any], Path], None], str] = {
    as_zip: "a.pth",
    as_zip_without_checksums: "a.pt",
    as_legacy: "a.pth.tar",
    save_file: "a.safetensors",
    as_index: "a.safetensors.index.json",
    hostile: "a.ckpt",
    hostile_legacy: "a.t7",
}


def cut(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content))]


def turned(content: bytes, chance: random.Random) -> bytes:
    """Some bits turned over, more often near the start, where the formats say what follows."""
    changed = bytearray(content)
    for _ in range(chance.choice([1, 2, 8])):
        reach = chance.choice([64, 1000, len(content)])
        changed[chance.randrange(min(reach, len(content)))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def overwritten(content: bytes, chance: random.Random) -> bytes:
    """A length, an offset or whatever it was, replaced by an extreme one."""
    extremes = [b"\xff" * 8, b"\x00" * 8, struct.pack("<Q", 2**40), struct.pack("<q", -1)]
    place = chance.randrange(len(content))
    extreme = chance.choice(extremes)
    return content[:place] + extreme + content[place + len(extreme) :]


def shuffled(content: bytes, chance: random.Random) -> bytes:
    """A piece of the file in another place."""
    start, end = sorted(chance.randrange(len(content)) for _ in range(2))
    place = chance.randrange(len(content))
    return content[:place] + content[start:end] + content[place:]


@pytest.mark.parametrize("damage", [cut, turned, overwritten, shuffled])
@pytest.mark.parametrize("save", FORMATS, ids=lambda save: save.__name__)
def test_a_damaged_file_loads_or_is_one_clear_error(
    tmp_path: Path, save: Callable, damage: Callable
) -> None:
    path, target = tmp_path / FORMATS[save], network()
    save(network().state_dict(), path)
    content, chance = path.read_bytes(), random.Random(f"{save.__name__} {damage.__name__}")
    errors = []
    for _ in range(ROUNDS):
        path.write_bytes(damage(content, chance))
        try:
            load_weights(target, path, min_match=0.5)
        except (ValueError, OSError) as error:  # any other fails the test
            errors.append(str(error))
    assert errors
    assert all(str(tmp_path) in error for error in errors)
    assert not MARKER.exists()


@pytest.mark.parametrize("save", [hostile, hostile_legacy])
def test_no_code_of_a_file_runs(tmp_path: Path, save: Callable) -> None:
    save(network().state_dict(), tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth holds more than tensors"):
        load_weights(network(), tmp_path / "a.pth")
    assert not MARKER.exists()


def safetensors_file(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape: list[int], end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}


HEADERS = {
    "longer than the file": safetensors_file({"a": tensor([4], 16)}, bytes(16), length=10**6),
    "longer than any file": safetensors_file(b"{}", length=2**63),
    "negative": safetensors_file(b"{}", length=2**64 - 1),
    "a huge tensor": safetensors_file({"a": tensor([2**40], 2**42)}),
    "an overflow": safetensors_file({"a": tensor([2**32, 2**32, 2**32], 16)}, bytes(16)),
    "overlapping tensors": safetensors_file({k: tensor([4], 16) for k in "abc"}, bytes(16)),
    "a negative size": safetensors_file({"a": tensor([-4], 16)}, bytes(16)),
    "an unknown type": safetensors_file({"a": tensor([4], 16, "X9")}, bytes(16)),
    "a deep nest": safetensors_file(b'{"a":' * 10**5 + b"1" + b"}" * 10**5),
    "no JSON": safetensors_file(b"{hello}"),
    "a list": safetensors_file(b"{}" + b" " * 8)[:8] + b"[1]",
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_header_of_safetensors_that_cannot_be_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.safetensors").write_bytes(HEADERS[kind])
    with pytest.raises(ValueError, match=r"a\.safetensors (is no weights file|has no tensors)"):
        read_state_dict(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/etc/passwd", "sub/a.safetensors", "..", ".", "", "a\0b", 7]
)
def test_an_index_names_only_files_beside_it(tmp_path: Path, name: Any) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(network().state_dict(), tmp_path / "outside.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"0.weight": name}}))
    with pytest.raises(ValueError, match=r"index\.json names .*not a file next to it"):
        read_state_dict(index)


def test_a_file_that_an_index_names_may_be_a_link(tmp_path: Path) -> None:
    state = network().state_dict()
    (tmp_path / "blobs").mkdir()
    save_file(state, tmp_path / "blobs" / "0a1b")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a.safetensors").symlink_to(tmp_path / "blobs" / "0a1b")
    index = tmp_path / "model" / "a.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(state, "a.safetensors")}))
    assert read_state_dict(index).keys() == state.keys()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"weight_map": {"a": "a.index.json"}}', "another index"),
        ("[" * 10**5, "no `weight_map`"),
        ('{"weight_map": 3}', "no `weight_map`"),
        ('{"weight_map": {"a": []}}', "no `weight_map`"),
        ("\udcff", "no `weight_map`"),
        ('{"weight_map": {}}', "no tensors by name"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "gone.safetensors"),
        ('{"weight_map": {"a": "nested.pth"}}', "'nested.pth', whose tensors are in entries: net"),
    ],
)
def test_an_index_that_cannot_be_followed_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    torch.save({"net": network().state_dict()}, tmp_path / "nested.pth")
    (tmp_path / "a.index.json").write_text(text, errors="surrogateescape")
    with pytest.raises((ValueError, OSError), match=message) as refused:
        read_state_dict(tmp_path / "a.index.json")
    assert str(tmp_path) in str(refused.value)


def test_a_zip_bomb_is_refused_unopened(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(64 << 20))
    with pytest.raises(ValueError, match=r"a\.pth claims to hold 67,108,864 bytes"):
        read_state_dict(tmp_path / "a.pth")


class Inflated:
    """A tensor that says that it is larger than its numbers."""

    def __init__(self, size: tuple[int, ...], stride: tuple[int, ...]) -> None:
        self.size, self.stride = size, stride

    def __reduce__(self) -> Any:
        storage = torch.storage.TypedStorage(
            wrap_storage=torch.zeros(4).untyped_storage(), dtype=torch.float32, _internal=True
        )
        arguments = (storage, 0, self.size, self.stride, False, OrderedDict())
        return torch._utils._rebuild_tensor_v2, arguments


@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize(
    ("size", "stride"), [((2**33,), (1,)), ((2**33,), (0,)), ((2**62,), (1,)), ((-5,), (1,))]
)
def test_a_tensor_that_claims_more_than_there_is_is_refused(
    tmp_path: Path, size: tuple[int, ...], stride: tuple[int, ...], is_new: bool
) -> None:
    content = {"a.weight_g": Inflated(size, stride), "a.weight_v": torch.ones(2)}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=is_new)
    with pytest.raises(
        ValueError, match=r"a\.pth (is no weights file|claims 34,359,738,368 bytes)"
    ):
        load_weights(network(), tmp_path / "a.pth")


def test_a_small_tensor_may_be_an_expanded_one(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1).expand(5000)}, tmp_path / "a.pth")
    assert read_state_dict(tmp_path / "a.pth")["a"].shape == (5000,)


def test_a_name_of_many_dots_does_no_harm() -> None:
    tensors: dict[str, Tensor] = {".".join("a" * 20_000): torch.ones(1)}
    assert best_mapping({"": tensors}, {"weight": torch.ones(1)}).stripped == ""


@pytest.mark.skipif(
    os.name != "posix" or os.geteuid() == 0, reason="needs a user without all rights"
)
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "a.pth")
    (tmp_path / "a.pth").chmod(0)
    with pytest.raises(PermissionError, match=r"a\.pth"):
        read_state_dict(tmp_path / "a.pth")

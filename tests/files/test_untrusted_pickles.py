"""A file that is made to end the process, or to fill its memory, is refused in a sentence.

Were it not, the process would end here as well, by a signal.
"""

import io
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from lightning import __version__
from safetensors.torch import save_file
from torch.serialization import MAGIC_NUMBER, PROTOCOL_VERSION

from lit_finetune import FinetuneClassifier
from lit_finetune.checkpoints.sharded import gather_checkpoint, plain_data_only
from lit_finetune.files.pickle_check import PickleError, check_pickle
from lit_finetune.resuming.load_from_checkpoint import trusted_checkpoint
from lit_finetune.weights.files import read_entries
from lit_finetune.weights.load import read_state_dict

DEEP = b"\x80\x02}" + b")" + b"\x85" * 10**6 + b"K\x01s."
"""A dictionary with a key of a tuple of a tuple of …, whose hash overflows the stack."""


def text(of: bytes) -> bytes:
    return b"X" + len(of).to_bytes(4, "little") + of


STORAGE = b"\x80\x02(" + text(b"storage") + b"ctorch\nFloatStorage\n)" + b"\x85" * 10**6
STORAGE += text(b"cpu") + b"K\x01tQ."
TWICE = b"\x80\x02]q\x00" + b"".join(b"](h%ch%ceq%c" % (n, n, n + 1) for n in range(99)) + b"."
ITSELF = b"\x80\x02]q\x00h\x00a."
DEEP_BY_CHANGE = b"\x80\x02]q\x00]q\x01h\x00ah\x00h\x01a."
"""What is changed after it was put into something, as no pickle is written."""
BUFFER = b"\x80\x02c__builtin__\nbytearray\nJ\x00\x00\x00\x7f\x85R."
NESTED = b"\x80\x02ctorch._utils\n_rebuild_nested_tensor\n)R."
PICKLES = {
    "deep key": (DEEP, "deep"),
    "deep storage": (STORAGE, "deep"),
    "twice in itself": (TWICE, "again and again"),
    "holds itself": (ITSELF, "holds itself"),
    "changed later": (DEEP_BY_CHANGE, "holds itself"),
    "buffer": (BUFFER, "only claimed"),
    "nested tensor": (NESTED, "not checked"),
}


def as_zip(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", content)
        archive.writestr("a/version", "3\n")
    return file.getvalue()


def as_legacy(content: bytes) -> bytes:
    before = (MAGIC_NUMBER, PROTOCOL_VERSION, {"little_endian": True})
    parts = [*(pickle.dumps(each, protocol=2) for each in before), content]
    return b"".join([*parts, pickle.dumps([], protocol=2)])


@pytest.mark.parametrize("form", [as_zip, as_legacy])
@pytest.mark.parametrize(("content", "told"), PICKLES.values(), ids=PICKLES.keys())
def test_it_is_refused_as_weights_and_as_a_checkpoint(
    content: bytes, told: str, form: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    file = tmp_path / "made.ckpt"
    file.write_bytes(form(content))
    with pytest.raises(ValueError, match=rf"made\.ckpt.*{told}"):
        read_state_dict(file)
    with pytest.raises(ValueError, match=rf"made\.ckpt.*{told}"):
        FinetuneClassifier.load_from_checkpoint(file)
    with pytest.raises(ValueError, match=told):
        FinetuneClassifier.load_from_checkpoint(io.BytesIO(form(content)))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A whole checkpoint in a folder of shards."""
    state = {"state_dict": {"w": torch.arange(4.0)}, "more": {"text": "a"}}
    dcp.save(state, checkpoint_id=str(tmp_path / "shards"), no_dist=True)
    torch.save({"pytorch-lightning_version": __version__}, tmp_path / "shards" / "meta.pt")
    return tmp_path / "shards"


@pytest.mark.parametrize("name", ["meta.pt", ".metadata"])
def test_it_is_refused_in_a_folder_of_shards(name: str, shards: Path) -> None:
    assert gather_checkpoint(shards)["state_dict"]["w"].tolist() == [0, 1, 2, 3]
    (shards / name).write_bytes(DEEP if name == ".metadata" else as_zip(DEEP))
    with pytest.raises(ValueError, match=rf"{name}.*deep"):
        gather_checkpoint(shards)


@pytest.mark.parametrize("key", ["state_dict", "more"])
def test_it_is_refused_in_a_shard(key: str, shards: Path) -> None:
    index = pickle.loads((shards / ".metadata").read_bytes())
    content = as_zip(DEEP)
    for place, info in index.storage_data.items():
        if place.fqn.startswith(key):
            info.relative_path, info.offset, info.length = "made", 0, len(content)
    (shards / "made").write_bytes(content)
    (shards / ".metadata").write_bytes(pickle.dumps(index))
    wanted = {"state_dict": {"w": torch.zeros(4)}, "more": {"text": ""}}
    with pytest.raises(ValueError, match="shards"), plain_data_only(shards):
        dcp.load(wanted, checkpoint_id=str(shards), no_dist=True)


def test_an_index_that_is_exchanged_once_it_was_judged_runs_nothing(shards: Path) -> None:
    def exchange_and_load() -> None:
        (shards / ".metadata").write_bytes(b"cposix\nsystem\n(S'touch ran'\ntR.")
        dcp.load({"state_dict": {"w": torch.zeros(4)}}, checkpoint_id=str(shards), no_dist=True)

    with pytest.raises(ValueError, match="shards"), plain_data_only(shards):
        exchange_and_load()
    assert not Path("ran").exists()


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "value",
    [
        {"a": [1, (2, {3: 4.5})], "b": {1, 2}, "c": frozenset([1]), "d": bytearray(b"xy")},
        [list(range(5000))] * 3,
        {("a", 1): torch.Size([1, 2]), "long": 10**300, "text": "x" * 70_000},
    ],
)
def test_plain_data_passes(value: Any, protocol: int) -> None:
    file = io.BytesIO(pickle.dumps(value, protocol=protocol) + b"more")
    check_pickle(file)
    assert file.read() == b"more"


@pytest.mark.parametrize("levels", [40, 200])
def test_the_depth_is_counted(levels: int) -> None:
    value: Any = 0
    for level in range(levels):
        value = [value] if level % 3 == 0 else {"a": value} if level % 3 == 1 else (value,)
    file = io.BytesIO(pickle.dumps(value, protocol=2))
    if levels < 100:
        check_pickle(file)
    else:
        with pytest.raises(PickleError, match="deep"):
            check_pickle(file)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".legacy"])
def test_a_file_cut_short_once_it_was_read_changes_nothing(suffix: str, tmp_path: Path) -> None:
    file, weights = tmp_path / f"w{suffix}", {"w": torch.arange(2**18)}
    if suffix == ".safetensors":
        save_file(weights, file)
    else:
        torch.save(weights, file, _use_new_zipfile_serialization=suffix == ".pth")
    read = read_entries(file)[""]["w"]
    os.truncate(file, 0)
    assert torch.equal(read, weights["w"])  # mapped, it would end the process


@pytest.mark.parametrize("name", ["pipe", "/dev/zero"])
def test_what_is_no_ordinary_file_is_refused_and_not_waited_for(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "pipe":
        os.mkfifo(path)
    with pytest.raises(OSError, match=f"{name} is no ordinary file"):
        FinetuneClassifier.load_from_checkpoint(path)


def test_the_file_that_was_judged_is_the_one_that_is_loaded(tmp_path: Path) -> None:
    """As where another one is put in its place in between."""
    model = FinetuneClassifier("squeezenet1_1", num_classes=2)
    good, other = tmp_path / "good.ckpt", tmp_path / "other.ckpt"
    said = {"backbone": "squeezenet1_1", "num_classes": 2}
    own = {"classes": None, "data_config": {}, "run_seed": None}
    content = {"pytorch-lightning_version": __version__, "epoch": 0, "global_step": 0}
    content |= {"hyper_parameters": said, "lit_finetune": own}
    torch.save({**content, "state_dict": model.state_dict()}, good)
    other.write_bytes(as_zip(DEEP))

    options: dict[str, Any] = {"hparams_file": None, "weights_only": None, "user_kwargs": {}}
    with trusted_checkpoint(FinetuneClassifier, good, **options) as (file, _):
        shutil.move(other, good)
        state = torch.load(file, weights_only=True)["state_dict"]
    assert all(map(torch.equal, state.values(), model.state_dict().values()))

"""What is sharded as one, and what the network is called afterwards; in one process."""

import importlib
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from lit_finetune import FinetuneClassifier, list_blocks
from lit_finetune.checkpoints.sharded import gather_checkpoint, plain_data_only
from lit_finetune.distributed.fsdp2 import is_sharded, refuse_unsharded, reshard, shard
from lit_finetune.freezing.copy_weights import copy_trained, restore_weights


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[DeviceMesh]:
    """As ModelParallelStrategy makes it, of this process alone."""
    distributed.init_process_group("gloo", f"file://{tmp_path}/group", rank=0, world_size=1)
    names = ("data_parallel", "tensor_parallel")
    yield init_device_mesh("cpu", (1, 1), mesh_dim_names=names)
    distributed.destroy_process_group()


class Stages(nn.Module):
    """A stem, stages that nobody calls as one, and a head that shares its weights with the stem."""

    def __init__(self, is_tied: bool = False) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.stem = nn.Linear(4, 4)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)) for _ in range(2)
        )
        self.fc = nn.Linear(4, 4)
        if is_tied:
            self.fc.weight = self.stem.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x * self.scale)
        for stage in self.stages:
            x = stage(x)
        return self.fc(x)


def fsdp_units(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, FSDPModule)]


def test_without_a_mesh_nothing_is_sharded() -> None:
    network = Stages()

    shard(network, None)

    assert not is_sharded(network)


def test_each_block_is_sharded_by_itself_and_what_stands_outside_with_the_whole(
    mesh: DeviceMesh,
) -> None:
    network = Stages()
    names, blocks = list(network.state_dict()), list_blocks(network)

    shard(network, mesh)
    shard(network, mesh)  # Lightning calls `configure_model` more than once

    assert fsdp_units(network) == ["", "stem", "stages.0", "stages.1", "fc"]
    assert all(isinstance(parameter, DTensor) for parameter in network.parameters())
    assert list(network.state_dict()) == names
    assert list_blocks(network) == blocks


def test_weights_that_two_blocks_share_stay_shared(mesh: DeviceMesh) -> None:
    network = Stages(is_tied=True)

    shard(network, mesh)
    network(torch.randn(3, 4)).sum().backward()

    assert fsdp_units(network) == ["", "stages.0", "stages.1"]
    assert network.fc.weight is network.stem.weight


def test_shards_are_back_in_place_after_a_run_without_gradients(mesh: DeviceMesh) -> None:
    network = Stages()
    shard(network, mesh, reshard_after_forward=False)
    with torch.no_grad():
        network(torch.randn(3, 4))
    assert not isinstance(network.fc.weight, DTensor)

    reshard(network)

    assert isinstance(network.fc.weight, DTensor)


def test_the_best_weights_of_shards_are_whole_and_go_back_into_shards(mesh: DeviceMesh) -> None:
    network = Stages()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    shard(network, mesh)

    best = copy_trained(network, [])
    for parameter in network.parameters():
        parameter.data.zero_()
    restore_weights(network, best)

    assert not any(isinstance(value, DTensor) for value in best.values())
    weight = network.stem.weight
    assert isinstance(weight, DTensor)
    assert torch.equal(weight.full_tensor(), before["stem.weight"])


def test_what_is_to_train_must_be_sharded(mesh: DeviceMesh) -> None:
    model = nn.ModuleDict({"net": Stages(), "extra": nn.Linear(2, 2)})
    shard(model["net"], mesh)

    refuse_unsharded(model, {"net.fc.weight"})
    with pytest.raises(ValueError, match=r"nothing shards: extra\.weight, extra\.bias\. Give"):
        refuse_unsharded(model, {"net.fc.weight", "extra.weight", "extra.bias"})


def test_the_classifier_shards_its_backbone_under_a_mesh_and_only_then(mesh: DeviceMesh) -> None:
    model = FinetuneClassifier(Stages(), num_classes=3, head_name="fc")
    blocks = model.blocks

    model.configure_model()
    assert not is_sharded(model)

    model._device_mesh = mesh  # as ModelParallelStrategy does
    model.configure_model()
    assert fsdp_units(model) == [
        f"backbone{name}" for name in ("", ".stem", ".stages.0", ".stages.1", ".fc")
    ]
    assert model.blocks == blocks


class Boom:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("boom"),)  # type: ignore[return-value]


def test_an_index_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "meta.pt")
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Boom()))

    with pytest.raises(ValueError, match="The checkpoint's index refers to"):
        gather_checkpoint(tmp_path)

    assert not Path("boom").exists()


def sharded(folder: Path) -> Path:
    """A checkpoint in parts, as torch writes one, with a number beside the tensors."""
    state = {"state_dict": {"weight": torch.arange(4.0)}, "optimizer": {"lr": 0.1}}
    dcp.save(state, checkpoint_id=folder, no_dist=True)
    torch.save({"epoch": 0}, folder / "meta.pt")
    return folder


@pytest.mark.parametrize("name", ["../__0_0.distcp", "/tmp/x", "s3://a/b", "..", ""])
def test_an_index_of_shards_does_not_leave_its_folder(tmp_path: Path, name: str) -> None:
    folder = sharded(tmp_path / "last.ckpt")
    assert torch.equal(gather_checkpoint(folder)["state_dict"]["weight"], torch.arange(4.0))
    index = pickle.loads((folder / ".metadata").read_bytes())
    for place in index.storage_data.values():
        place.relative_path = name
    (folder / ".metadata").write_bytes(pickle.dumps(index))

    with pytest.raises(ValueError, match="not a file next to it"):
        gather_checkpoint(folder)


METADATA, PATHS = "torch.distributed.checkpoint.metadata", "pathlib"


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


@pytest.mark.parametrize(
    ("module", "name", "called"),
    [
        (METADATA, "Metadata", b""),
        (METADATA, "_MEM_FORMAT_ENCODING", b"K\x00\x85R"),  # the member of this value
        (PATHS, "PurePosixPath", b""),
        ("torch.serialization", "_get_layout", b""),
    ],
)
@pytest.mark.parametrize("by_slots", [True, False])
def test_an_index_gives_classes_and_functions_no_attributes(
    tmp_path: Path, module: str, name: str, called: bytes, by_slots: bool
) -> None:
    thing = getattr(importlib.import_module(module), name)
    thing = thing(0) if called else thing
    given = b"}" + text("evil") + text("planted") + b"s"
    state = b"N" + given + b"\x86" if by_slots else given
    named = f"c{module}\n{name}\n".encode()
    (sharded(tmp_path) / ".metadata").write_bytes(b"\x80\x02" + named + called + state + b"b.")

    with pytest.raises(ValueError, match="would change more than what it builds"):
        gather_checkpoint(tmp_path)

    assert not hasattr(thing, "evil")


def test_an_index_that_declares_more_than_its_files_hold_is_refused(tmp_path: Path) -> None:
    index = pickle.loads((sharded(tmp_path) / ".metadata").read_bytes())
    index.state_dict_metadata["state_dict.weight"].size = torch.Size([10**13])
    (tmp_path / ".metadata").write_bytes(pickle.dumps(index))

    with pytest.raises(
        ValueError, match=r"declares 40,000,000,000,0\d\d bytes of tensors, and its files"
    ):
        gather_checkpoint(tmp_path)


def test_a_shard_that_holds_something_else_is_told(tmp_path: Path) -> None:
    (shard,) = sharded(tmp_path).glob("*.distcp")
    shard.write_bytes(bytes(len(shard.read_bytes())))

    with pytest.raises(ValueError, match=r"The shards of .* are damaged"):
        gather_checkpoint(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x80", pickle.dumps({"a": 1}), pickle.dumps(3)])
def test_a_damaged_index_of_shards_is_told(tmp_path: Path, content: bytes) -> None:
    (sharded(tmp_path) / ".metadata").write_bytes(content)

    with pytest.raises(ValueError, match="no index of a sharded checkpoint"):
        gather_checkpoint(tmp_path)


def test_torch_reads_plain_data_alone_from_a_folder_of_shards(tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    wanted = {"state_dict": {"weight": torch.zeros(4)}, "optimizer": {"lr": 0.0}}
    with plain_data_only(folder):
        dcp.load(wanted, checkpoint_id=folder, no_dist=True)
    assert wanted["optimizer"]["lr"] == 0.1

    dcp.save({"optimizer": {"lr": Boom()}}, checkpoint_id=folder, no_dist=True)
    torch.save({"epoch": 0}, folder / "meta.pt")
    with pytest.raises(ValueError, match="more than plain data"), plain_data_only(folder):
        dcp.load({"optimizer": {"lr": 0.0}}, checkpoint_id=folder, no_dist=True)
    (folder / ".metadata").write_bytes(pickle.dumps(Boom()))
    with pytest.raises(ValueError, match="refers to"), plain_data_only(folder):
        pass

    assert not Path("boom").exists()

"""Weights files as trainings of all kinds leave them: loaded, or refused with what to do."""

import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.optim.swa_utils import AveragedModel

from lit_finetune import FinetuneClassifier
from lit_finetune.weights.load import load_weights

State = dict[str, Tensor]


class Network(nn.Module):
    """Convolution, norm, a wide layer and a head."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        self.fc = nn.Linear(8, num_classes)


def backbone_of(state: State) -> State:
    return {name: value for name, value in state.items() if not name.startswith("fc.")}


def under(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def other() -> State:
    return Network().state_dict()


def data_parallel(state: State, path: Path) -> None:
    torch.save({"state_dict": under("module.", state), "best_acc1": torch.tensor(0.7)}, path)


def legacy(state: State, path: Path) -> None:
    torch.save({"net": state, "acc": 92.9}, path, _use_new_zipfile_serialization=False)


def lightning(state: State, path: Path) -> None:
    beside = {"epoch": 3, "global_step": 9, "pytorch-lightning_version": "2.0.0", "loops": {}}
    states = {"optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}}]}
    torch.save({**beside, **states, "state_dict": under("model.", state)}, path)


def timm_ema(state: State, path: Path) -> None:
    beside = {"epoch": 3, "arch": "resnet18", "version": 2, "metric": 0.8}
    torch.save({**beside, "state_dict": other(), "state_dict_ema": state}, path)


def torchvision_ema(state: State, path: Path) -> None:
    averaged = {"n_averaged": torch.tensor(7), **under("module.", state)}
    torch.save({"model": other(), "optimizer": {}, "epoch": 2, "model_ema": averaged}, path)


def moco(state: State, path: Path) -> None:
    projection = {f"fc.{i}.weight": torch.ones(5, 8) for i in (0, 2)}
    query = {**backbone_of(state), **projection}
    key = {**backbone_of(other()), **projection}
    states = {**under("module.encoder_q.", query), **under("module.encoder_k.", key)}
    states |= {"module.queue": torch.ones(8, 16), "module.queue_ptr": torch.zeros(1).long()}
    torch.save({"arch": "resnet50", "epoch": 200, "state_dict": states}, path)


def dino(state: State, path: Path) -> None:
    head = {"head.mlp.0.weight": torch.ones(6, 8), "head.last_layer.weight_g": torch.ones(9, 1)}
    student = under("module.", {**under("backbone.", backbone_of(other())), **head})
    teacher = {**under("backbone.", backbone_of(state)), **head}
    torch.save({"student": student, "teacher": teacher, "dino_loss": {"center": head}}, path)


def mean_teacher(state: State, path: Path) -> None:
    states = {**under("student.", other()), **under("teacher.", state)}
    torch.save({"state_dict": states}, path)


def openmmlab(state: State, path: Path) -> None:
    neck = {"head.fc.weight": torch.ones(3, 8)}
    torch.save(
        {"meta": {"epoch": 1}, "state_dict": {**under("backbone.", backbone_of(state)), **neck}},
        path,
    )


def compiled(state: State, path: Path) -> None:
    torch.save({"model": under("_orig_mod.", state)}, path)


def compiled_in_parallel(state: State, path: Path) -> None:
    torch.save({"model": under("_orig_mod.module.", state)}, path)


def averaged_model(state: State, path: Path) -> None:
    network = Network(len(state["fc.bias"]))
    network.load_state_dict(state)
    torch.save(AveragedModel(network).state_dict(), path)


def parameters(state: State, path: Path) -> None:
    torch.save({name: nn.Parameter(v) for name, v in state.items() if v.is_floating_point()}, path)


def half(state: State, path: Path) -> None:
    torch.save({n: v.half() if v.is_floating_point() else v for n, v in state.items()}, path)


def safetensors(state: State, path: Path) -> None:
    save_file(state, path, metadata={"format": "pt"})


def sharded(state: State, path: Path) -> None:
    files = {name: f"model-0000{1 + ('fc' in name)}-of-00002.safetensors" for name in state}
    for file in set(files.values()):
        save_file({n: v for n, v in state.items() if files[n] == file}, path.with_name(file))
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": files}))


def sharded_bin(state: State, path: Path) -> None:
    files = {name: f"pytorch_model-{1 + ('fc' in name)}.bin" for name in state}
    for file in set(files.values()):
        torch.save({n: v for n, v in state.items() if files[n] == file}, path.with_name(file))
    path.write_text(json.dumps({"weight_map": files}))


def gathered_shards(state: State, path: Path) -> None:
    folder = path.with_name("folder")
    dcp.save({"app": {"model": state}}, checkpoint_id=folder, no_dist=True)
    dcp_to_torch_save(folder, path)


WHOLE = {
    data_parallel: "a.pth.tar",
    legacy: "a.t7",
    lightning: "last.ckpt",
    timm_ema: "model_best.pth.tar",
    torchvision_ema: "model_9.pth",
    mean_teacher: "a.pth",
    compiled: "a.pt",
    compiled_in_parallel: "a.pt",
    averaged_model: "swa.pth",
    parameters: "a.th",
    safetensors: "model.safetensors",
    sharded: "model.safetensors.index.json",
    sharded_bin: "pytorch_model.bin.index.json",
    gathered_shards: "gathered.pth",
}
WITHOUT_HEAD = {
    moco: "moco_v2_200ep.pth.tar",
    dino: "dino_checkpoint.pth",
    openmmlab: "epoch_1.pth",
}


def some_state(num_classes: int = 3) -> State:
    state = Network(num_classes).state_dict()
    state["bn1.running_mean"] += 1.5
    return state


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("save", WHOLE, ids=lambda save: save.__name__)
def test_a_file_of_this_kind_fills_the_whole_network(tmp_path: Path, save: Callable) -> None:
    state, network = some_state(), Network()
    save(state, tmp_path / WHOLE[save])
    report = load_weights(network, tmp_path / WHOLE[save])
    ours = {n: v for n, v in network.state_dict().items() if "num_batches" not in n}
    assert all(value.equal(state[name]) for name, value in ours.items() if name in report.matched)
    assert (report.share, report.head_dropped) == (1.0, ())
    assert {"fc.weight", "fc.bias"} < set(report.matched)


@pytest.mark.parametrize("save", WITHOUT_HEAD, ids=lambda save: save.__name__)
def test_a_file_of_this_kind_fills_the_backbone(tmp_path: Path, save: Callable) -> None:
    state, network = some_state(), Network()
    head = network.fc.weight.clone()
    save(state, tmp_path / WITHOUT_HEAD[save])
    report = load_weights(network, tmp_path / WITHOUT_HEAD[save])
    ours = network.state_dict()
    assert all(value.equal(ours[name]) for name, value in backbone_of(state).items())
    assert report.share == 1.0
    assert network.fc.weight.equal(head)


def test_half_precision_is_cast(tmp_path: Path) -> None:
    state, network = some_state(), Network()
    half(state, tmp_path / "a.pth")
    assert load_weights(network, tmp_path / "a.pth").share == 1.0
    assert network.conv1.weight.equal(state["conv1.weight"].half().float())


def test_another_class_count_leaves_the_new_head(tmp_path: Path) -> None:
    network = Network()
    torch.save(some_state(num_classes=10), tmp_path / "a.pth")
    report = load_weights(network, tmp_path / "a.pth")
    assert (report.share, report.head_dropped) == (1.0, ("fc.weight", "fc.bias"))


def test_another_architecture_is_refused_with_the_share_that_fits(tmp_path: Path) -> None:
    saved = nn.ModuleDict({"conv1": nn.Conv2d(3, 4, 3), "layer1": nn.Linear(9, 9)})
    torch.save(saved.state_dict(), tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth fits 70\.0% of the backbone's parameters"):
        load_weights(Network(), tmp_path / "a.pth")


def whole_module(path: Path) -> None:
    torch.save(Network(), path)


def plain_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Network()))


def torchscript(path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(path)


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights/resnet18.pth", b"PK")


def tarred(path: Path) -> None:
    inside = path.with_name("inside.pth")
    torch.save(some_state(), inside)
    with tarfile.open(path, "w") as archive:
        archive.add(inside, "inside.pth")


def distributed(path: Path) -> None:
    dcp.save({"model": some_state()}, checkpoint_id=path, no_dist=True)


def lightning_fsdp(path: Path) -> None:
    distributed(path)
    torch.save({"epoch": 1}, path / "meta.pt")


def deepspeed(path: Path) -> None:
    (path / "checkpoint").mkdir(parents=True)
    (path / "zero_to_fp32.py").touch()


def hugging_face_folder(path: Path) -> None:
    path.mkdir()
    for name in ("README.md", "config.json", "a.txt", "b.txt", "c.txt", "model.safetensors"):
        (path / name).touch()


def lora(path: Path) -> None:
    adapter = {"layer1.0.lora_A.default.weight": torch.ones(1, 4)}
    names = {"layer1.0.weight": "layer1.0.base_layer.weight"}
    torch.save({names.get(n, n): v for n, v in some_state().items()} | adapter, path)


def flattened(path: Path) -> None:
    torch.save({"_fsdp_wrapped_module._flat_param": torch.ones(99)}, path)


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore:torch.distributed is disabled")
@pytest.mark.parametrize(
    ("save", "advice"),
    [
        (whole_module, r"torch\.save\(model\.state_dict\(\)"),
        (plain_pickle, r"could run any code.*torch\.save\(model"),
        (torchscript, r"torch\.jit\.load\('weights\.pth'\)\.state_dict"),
        (zipped, "zip archive, but not one of torch's: unpack it first"),
        (tarred, "tar archive: unpack it first"),
        (distributed, "dcp_to_torch .*weights.pth weights.pth"),
        (lightning_fsdp, r"lightning\.pytorch\.utilities\.consolidate_checkpoint .*weights.pth"),
        (deepspeed, "zero_to_fp32.py"),
        (hugging_face_folder, r"The folder has: model\.safetensors"),
        (lora, r"holds LoRA adapters .* `load_from_checkpoint`"),
        (flattened, "save a full state dict"),
    ],
    ids=lambda save: getattr(save, "__name__", None),
)
def test_what_cannot_be_loaded_is_refused_with_what_to_do(
    tmp_path: Path, save: Callable, advice: str
) -> None:
    path, network = tmp_path / "weights.pth", Network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    save(path)
    with pytest.raises(ValueError, match=rf"(?s)weights\.pth .*{advice}"):
        load_weights(network, path)
    assert all(value.equal(before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (torch.ones(3), "a Tensor"),
        ([other()], "a list"),
        ({}, "a dict with nothing in it"),
        ({"state": {}, "param_groups": []}, "the state of an optimizer, without weights"),
        ({"weight": torch.empty(3, device="meta")}, "without their numbers"),
        ({"\x1b[2J": 1}, r"the keys: \\x1b\[2J"),
    ],
)
def test_a_file_of_torch_without_weights_is_told_by_what_it_has(
    tmp_path: Path, content: object, what: str
) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=rf"no tensors by name, but .*{what}.*state_dict\(\)"):
        load_weights(Network(), tmp_path / "a.pth")


@pytest.mark.parametrize("kind", ["sparse_coo", "sparse_csr", "meta"])
@pytest.mark.parametrize("key", ["", "state_dict"])
def test_tensors_that_are_no_plain_numbers_are_named_and_not_called_missing(
    tmp_path: Path, kind: str, key: str
) -> None:
    state = some_state()
    name = next(name for name, tensor in state.items() if tensor.ndim == 2)
    change = {"sparse_coo": Tensor.to_sparse, "sparse_csr": Tensor.to_sparse_csr}
    state[name] = change.get(kind, lambda tensor: tensor.to("meta"))(state[name])
    torch.save({key: state} if key else state, tmp_path / "a.pth")

    with pytest.raises(ValueError, match=rf"a\.pth has tensors .*{name} \(.*{kind}"):
        load_weights(Network(), tmp_path / "a.pth")


def test_a_folder_is_called_what_it_is_by_its_name_alone(tmp_path: Path) -> None:
    folder = tmp_path / "savedmodel"
    folder.mkdir()
    (folder / "saved_model.pb").write_bytes(b"\x08\x01")

    for name in ("savedmodel", str(folder)):  # a test starts in its own folder
        with pytest.raises(ValueError, match="SavedModel of TensorFlow"):
            FinetuneClassifier(Network(), num_classes=3, weights=name)


def test_names_in_a_file_do_not_reach_the_terminal_as_they_are(tmp_path: Path) -> None:
    torch.save(some_state() | {"\x1b[2Ja": torch.ones(2)}, tmp_path / "a.pth")
    report = load_weights(Network(), tmp_path / "a.pth")
    assert r"unexpected   1: \x1b[2Ja" in str(report)


def test_an_index_that_is_a_pointer_is_called_so(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1")
    with pytest.raises(ValueError, match="git lfs pull"):
        load_weights(Network(), path)

"""A checkpoint from somebody else is data: what it names is not imported, called, read or fetched.

The judge is Python's own audit of what a process does (`sys.addaudithook`).
"""

import io
import os
import shutil
import sys
import traceback
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from lightning import __version__
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor, nn
from torch.optim.lr_scheduler import ConstantLR, MultiStepLR, SequentialLR
from torch.utils.data import DataLoader, TensorDataset

from lit_finetune import FinetuneClassifier
from lit_finetune.callbacks import FreezeUnfreezeCallback
from lit_finetune.cli.command_line import main
from lit_finetune.datamodules import DigitsDataModule

EVENTS: list[tuple[str, str]] | None = None


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if EVENTS is not None and event in ("open", "import", "os.system", "socket.getaddrinfo"):
        EVENTS.append((event, str(arguments[0])))


sys.addaudithook(_note)  # for good: it cannot be taken away


@contextmanager
def watched() -> Iterator[list[tuple[str, str]]]:
    """What the process opens, imports, runs and asks the network for."""
    global EVENTS
    EVENTS = events = []
    try:
        yield events
    finally:
        EVENTS = None


class Net(nn.Module):
    """A user's own network."""

    def __init__(self, width: int = 4, num_classes: int = 2) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.conv(images).mean((2, 3)))


class Subclass(FinetuneClassifier):
    def __init__(self, backbone: Any, num_classes: int, temperature: float = 1.0) -> None:
        super().__init__(backbone, num_classes=num_classes)
        self.save_hyperparameters({"temperature": temperature})


class TakesAnything(FinetuneClassifier):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)


class TakesOneConfig(FinetuneClassifier):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(**config)


class Runs:
    """What runs a command where it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


EVIL = "evil_module.nothing"
SECRET = "secret.pth"
CLI = "lightning.pytorch.cli.instantiate_module"


def with_kwargs(backbone: str, **kwargs: Any) -> dict[str, Any]:
    return {"hyper_parameters": {"backbone": backbone, "backbone_kwargs": kwargs}}


HOSTILE: Mapping[str, dict[str, Any]] = {
    "import path": {"hyper_parameters": {"backbone": EVIL}},
    "call": with_kwargs("shutil.copy", src=SECRET, dst="copied"),
    "call in torch": with_kwargs("torch.hub.load", repo_or_dir="evil/repo", model="x"),
    "old key": {"hparams": {"backbone": EVIL}, "hyper_parameters": {}},
    "older key": {"module_arguments": {"backbone": EVIL}, "hyper_parameters": {}},
    "instantiator": {"hyper_parameters": {"_instantiator": EVIL, "backbone": EVIL}},
    "lightning's instantiator": {
        "hyper_parameters": {
            "_instantiator": CLI,
            "backbone": {"class_path": EVIL, "init_args": {"a": 1}},
        }
    },
    "class path of the model": {
        "hyper_parameters": {"_instantiator": CLI, "_class_path": EVIL, "backbone": "resnet18"}
    },
    "class path as head": {
        "hyper_parameters": {"backbone": "resnet18", "head": {"class_path": EVIL}}
    },
    "import path as head": {"hyper_parameters": {"backbone": "resnet18", "head": EVIL}},
    "class path as lora": {
        "hyper_parameters": {"backbone": "resnet18", "lora": {"target": [{"class_path": EVIL}]}}
    },
    "class path deep in kwargs": with_kwargs("resnet18", a=[{"b": {"class_path": EVIL}}]),
    "hub": {"hyper_parameters": {"backbone": "hf/evil/model"}},
    "folder": {"hyper_parameters": {"backbone": "hf/./folder"}},
    "folder by a plain name": {"hyper_parameters": {"backbone": "hf/folder"}},
    "config file": {"hyper_parameters": {"backbone": "hf/folder/config.json"}},
    "timm's hub": {"hyper_parameters": {"backbone": "timm/hf-hub:evil/model"}},
    "timm's old hub": {"hyper_parameters": {"backbone": "timm/hf_hub:evil/model"}},
    "timm's folder": {"hyper_parameters": {"backbone": "timm/local-dir:folder"}},
    "timm's folder after a slash": {"hyper_parameters": {"backbone": "timm/timm/resnet18"}},
    "kernel on the hub": with_kwargs("hf/vit", attn_implementation="evil/kernel"),
    "timm on the hub in transformers": with_kwargs(
        "hf/table-transformer", backbone_config={"backbone": "hf-hub:evil/model"}
    ),
    "timm wrapper in transformers": with_kwargs(
        "hf/detr",
        backbone_config={"model_type": "timm_wrapper", "architecture": "local-dir:folder"},
    ),
    "tensors as arguments": with_kwargs("resnet18", width_per_group=torch.ones(2)),
    "no mapping": {"hyper_parameters": ["backbone", EVIL]},
    "numbers as names": {"hyper_parameters": {1: EVIL}},
}
"""What a file says, and loading must refuse."""


def save(path: Path, said: Mapping[str, Any]) -> Path:
    """A checkpoint of plain data that says this."""
    content = {"pytorch-lightning_version": __version__, "epoch": 0, "global_step": 0}
    said = dict(said)
    if isinstance(said["hyper_parameters"], dict):
        said["hyper_parameters"] = {"num_classes": 2, "weights": None, **said["hyper_parameters"]}
    torch.save({**content, "state_dict": {}, **said}, path)
    torch.load(path, weights_only=True)
    return path


@pytest.fixture(autouse=True)
def _bait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil_module.py").write_text("open('imported', 'w').close()\nnothing = dict\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text('{"model_type": "vit"}')
    torch.save({"w": torch.zeros(2)}, tmp_path / SECRET)
    monkeypatch.syspath_prepend(tmp_path)


def assert_nothing_happened(events: list[tuple[str, str]], folder: Path) -> None:
    assert "evil_module" not in sys.modules
    assert not {"imported", "copied", "ran"} & {path.name for path in folder.iterdir()}
    touched = [f"{event} {what}" for event, what in events]
    bait = ("evil", "secret", "config.json", "os.system", "socket.getaddrinfo")
    assert not [line for line in touched if any(word in line for word in bait)]


@pytest.mark.parametrize("place", ["a file", "an open file", "a folder of shards"])
@pytest.mark.parametrize("said", HOSTILE.values(), ids=HOSTILE.keys())
def test_what_a_checkpoint_names_is_refused_before_it_is_touched(
    said: dict[str, Any], place: str, tmp_path: Path
) -> None:
    file: Any = save(tmp_path / "hostile.ckpt", said)
    if place == "an open file":
        file = io.BytesIO(file.read_bytes())
    elif place == "a folder of shards":
        folder = tmp_path / "shards"
        dcp.save({"state_dict": {"w": torch.zeros(2)}}, checkpoint_id=str(folder), no_dist=True)
        file = shutil.move(file, folder / "meta.pt") and folder
    with watched() as events, pytest.raises(ValueError, match="checkpoint"):
        FinetuneClassifier.load_from_checkpoint(file)
    assert_nothing_happened(events, tmp_path)


@pytest.mark.parametrize("cls", [Subclass, TakesAnything])
@pytest.mark.parametrize("name", ["import path", "hub", "lightning's instantiator", "folder"])
def test_a_subclass_refuses_it_as_well(
    cls: type[FinetuneClassifier], name: str, tmp_path: Path
) -> None:
    file = save(tmp_path / "hostile.ckpt", HOSTILE[name])
    with watched() as events, pytest.raises(ValueError, match="say it yourself"):
        cls.load_from_checkpoint(file)
    assert_nothing_happened(events, tmp_path)


@pytest.mark.parametrize("packed_by", ["name", "value"])
def test_a_subclass_that_takes_all_in_one_refuses_it_as_well(
    packed_by: str, tmp_path: Path
) -> None:
    said = {"backbone": EVIL, "num_classes": 2}
    named = {"hyper_parameters": said, "hparams_name": "config"}
    file = save(
        tmp_path / "hostile.ckpt",
        named if packed_by == "name" else {"hyper_parameters": {"config": said}},
    )
    with watched() as events, pytest.raises(ValueError, match="say it yourself"):
        TakesOneConfig.load_from_checkpoint(file)
    assert_nothing_happened(events, tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hparams.yaml", f"a: {'[' * 5000}{']' * 5000}"),
        ("hparams.yaml", "a: [}"),
        ("hparams.csv", "key,value\na\n"),
    ],
)
def test_a_file_of_hyper_parameters_that_is_none_is_named(
    name: str, text: str, tmp_path: Path
) -> None:
    file = save(tmp_path / "plain.ckpt", {"hyper_parameters": {"backbone": "resnet18"}})
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{name}' holds no hyper-parameters"):
        FinetuneClassifier.load_from_checkpoint(file, hparams_file=tmp_path / name)


@pytest.mark.parametrize("option", ["--config", "-c"])
def test_a_configuration_that_is_nested_too_deep_is_named(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "deep.yaml").write_text(f"a: {'[' * 5000}{']' * 5000}")
    with pytest.raises(SystemExit):
        main(args=["predict", option, str(tmp_path / "deep.yaml")])
    assert "deep.yaml is no YAML: it is nested too deep" in capsys.readouterr().err


def test_a_file_of_hyper_parameters_is_trusted_no_more(tmp_path: Path) -> None:
    file = save(tmp_path / "plain.ckpt", {"hyper_parameters": {"backbone": "resnet18"}})
    (tmp_path / "hparams.yaml").write_text(f"backbone: {EVIL}\nnum_classes: 2\n")
    with watched() as events, pytest.raises(ValueError, match="say it yourself"):
        FinetuneClassifier.load_from_checkpoint(file, hparams_file=tmp_path / "hparams.yaml")
    assert_nothing_happened(events, tmp_path)


def written(path: Path, model: FinetuneClassifier) -> Path:
    """The checkpoint that a run writes."""
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(path)
    return path


@pytest.mark.parametrize("end", ["\u2028", "\x85", "\x0c", "\x1e", "\r", "\n"])
def test_lines_of_a_file_of_hyper_parameters_end_where_we_judged(end: str, tmp_path: Path) -> None:
    file = written(tmp_path / "plain.ckpt", FinetuneClassifier("squeezenet1_1", num_classes=2))
    rows = f'key,value\nbackbone,{EVIL}\nnum_classes,2\nnote,"x{end}backbone,resnet18"\n'
    (tmp_path / "hparams.csv").write_text(rows, encoding="utf-8", newline="")
    with watched() as events, pytest.raises(ValueError, match="say it yourself"):
        FinetuneClassifier.load_from_checkpoint(file, hparams_file=tmp_path / "hparams.csv")
    assert_nothing_happened(events, tmp_path)


@pytest.mark.parametrize("suffix", ["yaml", "csv"])
def test_a_file_of_hyper_parameters_counts(suffix: str, tmp_path: Path) -> None:
    model = FinetuneClassifier("squeezenet1_1", num_classes=2, lr=0.5)
    file = written(tmp_path / "plain.ckpt", model)
    said = {"backbone": "squeezenet1_1", "num_classes": 2, "lr": 0.25}
    text = {
        "yaml": "".join(f"{key}: {value}\n" for key, value in said.items()),
        "csv": "key,value\n" + "".join(f"{key},{value}\n" for key, value in said.items()),
    }[suffix]
    (tmp_path / f"hparams.{suffix}").write_text(text)
    loaded = FinetuneClassifier.load_from_checkpoint(
        file, hparams_file=tmp_path / f"hparams.{suffix}"
    )
    assert loaded.lr == 0.25
    assert all(map(torch.equal, loaded.state_dict().values(), model.state_dict().values()))


@pytest.mark.parametrize(
    ("backbone", "kwargs"),
    [
        ("timm/test_resnet", {"checkpoint_path": SECRET, "cache_dir": "cache"}),
        ("timm/test_resnet", {"pretrained": True, "pretrained_cfg_overlay": {"file": SECRET}}),
        ("squeezenet1_1", {"pretrained": True, "weights": "DEFAULT", "progress": True}),
        ("hf/resnet", {"depths": [1, 1], "hidden_sizes": [8, 8], "use_pretrained_backbone": True}),
    ],
)
def test_weights_that_a_checkpoint_names_are_not_read(
    backbone: str, kwargs: dict[str, Any], tmp_path: Path
) -> None:
    built = {key: value for key, value in kwargs.items() if key in ("depths", "hidden_sizes")}
    model = FinetuneClassifier(backbone, num_classes=2, backbone_kwargs=built)
    said = {**with_kwargs(backbone, **kwargs), "state_dict": model.state_dict()}
    said["hyper_parameters"]["weights"] = SECRET
    said["lit_finetune"] = {"classes": None, "data_config": {}, "run_seed": None}
    with watched() as events:
        loaded = FinetuneClassifier.load_from_checkpoint(save(tmp_path / "hostile.ckpt", said))
    assert_nothing_happened(events, tmp_path)
    assert all(map(torch.equal, loaded.state_dict().values(), model.state_dict().values()))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A checkpoint of a network that another program named by its import path."""
    model = FinetuneClassifier(Net(8), num_classes=2)
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    content = torch.load(tmp_path / "own.ckpt", weights_only=True)
    content["hyper_parameters"] |= {"backbone": f"{__name__}.Net", "backbone_kwargs": {"width": 8}}
    torch.save(content, tmp_path / "own.ckpt")
    return tmp_path / "own.ckpt"


@pytest.mark.parametrize(
    "again",
    [f"{__name__}.Net", Net, lambda width: Net(width)],
    ids=["path", "class", "function"],
)
def test_a_network_of_ones_own_is_one_argument_away(own: Path, again: Any) -> None:
    with pytest.raises(ValueError, match=r"backbone='\S*Net'"):
        FinetuneClassifier.load_from_checkpoint(own)
    try:
        loaded = FinetuneClassifier.load_from_checkpoint(own, backbone=again)
    finally:
        forget(f"{__name__}.Net")
    expected = torch.load(own, weights_only=True)["state_dict"]
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())


def test_a_module_takes_the_place_of_name_and_arguments(own: Path) -> None:
    options = {"backbone": Net(8), "backbone_kwargs": None}
    loaded = FinetuneClassifier.load_from_checkpoint(own, **options)
    expected = torch.load(own, weights_only=True)["state_dict"]
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())


def test_a_name_that_the_program_has_given_itself_is_known(own: Path) -> None:
    try:
        FinetuneClassifier(f"{__name__}.Net", num_classes=2)
        FinetuneClassifier.load_from_checkpoint(own)
    finally:
        forget(f"{__name__}.Net")


def forget(name: str) -> None:
    """As in a new program."""
    from lit_finetune.checkpoints import trusted_hparams

    trusted_hparams._TRUSTED_NAMES.discard(name)


def pickled(path: Path) -> None:
    torch.save({"state_dict": {}, "evil": Runs()}, path)


def pickled_in_the_old_format(path: Path) -> None:
    torch.save({"evil": Runs()}, path, _use_new_zipfile_serialization=False)


def whole_model(path: Path) -> None:
    torch.save(Net(), path)


FOREIGN: Mapping[str, Callable[[Path], object]] = {
    "pickled": pickled,
    "old format": pickled_in_the_old_format,
    "whole model": whole_model,
    "noise": lambda path: path.write_bytes(bytes(range(256)) * 4),
    "empty": lambda path: path.write_bytes(b""),
    "a web page": lambda path: path.write_bytes(b"<html></html>"),
    "half a file": lambda path: path.write_bytes(_half()),
    "weights": lambda path: torch.save(Net().state_dict(), path),
    "a list": lambda path: torch.save([1, 2], path),
}


def _half() -> bytes:
    whole = io.BytesIO()
    torch.save({"state_dict": Net().state_dict()}, whole)
    return whole.getvalue()[:-100]


@pytest.mark.parametrize("write", FOREIGN.values(), ids=FOREIGN.keys())
def test_a_foreign_file_ends_in_a_sentence_of_ours(
    write: Callable[[Path], object], tmp_path: Path
) -> None:
    write(tmp_path / "foreign.ckpt")
    with pytest.raises(ValueError, match=r"foreign\.ckpt") as caught:
        FinetuneClassifier.load_from_checkpoint(tmp_path / "foreign.ckpt")
    shown = "".join(traceback.format_exception(caught.value))
    assert "weights_only=False" not in shown.partition("checkpoint_reader.py")[2]
    assert "load_from_checkpoint" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 0, 1])), 2)


def make_trainer() -> Trainer:
    options = {"enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_model_summary=False, **options
    )


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], str]]:
    """Where a file can be fetched from, by http."""
    folder = tmp_path_factory.mktemp("served")
    handler = partial(QuietHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()

        def serve(path: Path) -> str:
            shutil.copy(path, folder)
            return f"http://127.0.0.1:{server.server_port}/{path.name}"

        yield serve
        server.shutdown()


DAMAGED: Mapping[str, Any] = {
    "pytorch-lightning_version": "../x",
    "hparams_name": ["x"],
    "state_dict": {"backbone.fc.bias": [1, 2]},
    "epoch": "first",
    "global_step": -1,
    "callbacks": {"EarlyStopping": 3},
    "loops": [],
    "optimizer_states": [{"state": 3}],
    "lr_schedulers": [None],
    "lit_finetune": {"classes": None, "data_config": {}, "run_seed": "x"},
    "lit_finetune_run": {"batching": ["processes"]},
    "lit_finetune_monitored": {"val/loss": "low"},
}


@pytest.fixture
def trained(tmp_path: Path) -> dict[str, Any]:
    """What the checkpoint of a run holds."""
    trainer = make_trainer()
    trainer.fit(FinetuneClassifier(Net(), num_classes=2), loader())
    trainer.save_checkpoint(tmp_path / "trained.ckpt")
    content: dict[str, Any] = torch.load(tmp_path / "trained.ckpt", weights_only=True)
    return content


def test_a_damaged_part_is_told_by_its_name(trained: dict[str, Any], tmp_path: Path) -> None:
    for part, damage in DAMAGED.items():
        torch.save({**trained, part: damage}, tmp_path / "damaged.ckpt")
        said = rf"damaged\.ckpt is damaged, or was changed: its part `{part}`"
        with pytest.raises(ValueError, match=said):
            FinetuneClassifier.load_from_checkpoint(tmp_path / "damaged.ckpt", backbone=Net())
        model = FinetuneClassifier(Net(), num_classes=2)
        with pytest.raises(ValueError, match=said):
            make_trainer().fit(model, loader(), ckpt_path=str(tmp_path / "damaged.ckpt"))


def test_a_part_that_only_its_owner_knows_is_told_as_well(
    trained: dict[str, Any], tmp_path: Path
) -> None:
    (optimizer,), (scheduler,) = trained["optimizer_states"], trained["lr_schedulers"]
    loops = trained["loops"]
    for part, damage in {
        "loops": {key: value for key, value in loops.items() if key != "fit_loop"},
        "fit_loop": {**trained, "loops": {**loops, "fit_loop": {}}}["loops"],
        "optimizer_states": [
            {
                **optimizer,
                "param_groups": [
                    {**optimizer["param_groups"][0], "lr": "x"},
                    *optimizer["param_groups"][1:],
                ],
            }
        ],
        "lr_schedulers": [{**scheduler, "_step_count": "x"}],
    }.items():
        file = tmp_path / "damaged.ckpt"
        torch.save({**trained, "loops" if part == "fit_loop" else part: damage}, file)
        model = FinetuneClassifier(Net(), num_classes=2)
        model = FinetuneClassifier(Net(), num_classes=2)
        with pytest.raises(ValueError, match="The checkpoint cannot be restored"):
            make_trainer().fit(model, loader(), ckpt_path=str(file))


SCHEDULE = "FreezeUnfreezeCallback"
STOPPING = "EarlyStopping{'monitor': 'val/loss', 'mode': 'min'}"
WRONG: Mapping[str, tuple[tuple[Any, ...], Any]] = {
    "milestone": (("lr_schedulers", 0, "_schedulers", 1, "base_lrs", 0), None),
    "rate": (("lr_schedulers", 0, "_last_lr", 0), "x"),
    "factor": (("lr_schedulers", 0, "_schedulers", 0, "factor"), None),
    "momentum as text": (("optimizer_states", 0, "state", 0, "exp_avg"), "x"),
    "momentum as none": (("optimizer_states", 0, "state", 0, "exp_avg_sq"), None),
    "momentum as list": (("optimizer_states", 0, "state", 1, "exp_avg"), [None]),
    "weight decay": (("optimizer_states", 0, "param_groups", 0, "weight_decay"), None),
    "betas": (("optimizer_states", 0, "param_groups", 0, "betas", 1), None),
    "parameter": (("optimizer_states", 0, "param_groups", 0, "params", 0), "x"),
    "parameter twice": (("optimizer_states", 0, "param_groups", 0, "params", 0), 1),
    "patience": (("callbacks", STOPPING, "patience"), None),
    "score": (("callbacks", STOPPING, "best_score"), None),
    "beginning": (("callbacks", SCHEDULE, "progress", "began", 0, 1), None),
    "count": (("callbacks", SCHEDULE, "progress", "stall", "count"), "x"),
    "best": (("callbacks", SCHEDULE, "progress", "stall", "best"), [None]),
    "phases": (("callbacks", SCHEDULE, "phases"), torch.zeros(3)),
    "norms": (("callbacks", SCHEDULE, "train_bn"), torch.zeros(3)),
}


def run_in_phases(max_epochs: int) -> tuple[Trainer, FinetuneClassifier]:
    def make_scheduler(optimizer: Any) -> Any:
        parts = [ConstantLR(optimizer), MultiStepLR(optimizer, [3])]
        return SequentialLR(optimizer, parts, [2])

    model = FinetuneClassifier(Net(), num_classes=2, lr_scheduler=make_scheduler)
    callbacks = [FreezeUnfreezeCallback({0: "head", 1: "all"}), EarlyStopping("val/loss")]
    options = {"enable_checkpointing": False, "enable_progress_bar": False, "logger": False}
    trainer = Trainer(max_epochs=max_epochs, accelerator="cpu", callbacks=callbacks, **options)
    return trainer, model


@pytest.fixture(scope="module")
def in_phases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the checkpoint of a run in phases holds."""
    trainer, model = run_in_phases(2)
    trainer.fit(model, loader(), loader())
    path = tmp_path_factory.mktemp("phases") / "a.ckpt"
    trainer.save_checkpoint(path)
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def put(content: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A copy of plain data with another value in one place."""
    if not place:
        return value
    copied = dict(content) if isinstance(content, dict) else list(content)
    copied[place[0]] = put(content[place[0]], place[1:], value)
    return copied


@pytest.mark.parametrize(("place", "value"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_value_deep_in_a_state_is_told_at_the_start(
    place: tuple[Any, ...], value: Any, in_phases: dict[str, Any], tmp_path: Path
) -> None:
    torch.save(put(in_phases, place, value), tmp_path / "wrong.ckpt")
    trainer, model = run_in_phases(3)
    with pytest.raises(ValueError, match="damaged"):
        trainer.fit(model, loader(), loader(), ckpt_path=str(tmp_path / "wrong.ckpt"))


@pytest.mark.filterwarnings("ignore:The run resumes with other training pictures")
def test_the_same_without_a_wrong_value_is_resumed(
    in_phases: dict[str, Any], tmp_path: Path
) -> None:
    torch.save(in_phases, tmp_path / "right.ckpt")
    trainer, model = run_in_phases(3)
    trainer.fit(model, loader(), loader(), ckpt_path=str(tmp_path / "right.ckpt"))
    assert trainer.current_epoch == 3


def test_a_file_that_claims_more_than_it_has_is_refused(
    trained: dict[str, Any], tmp_path: Path
) -> None:
    expanded = {"backbone.fc.weight": torch.zeros(1).expand(10**13)}
    torch.save({**trained, "state_dict": expanded}, tmp_path / "expanded.ckpt")
    with zipfile.ZipFile(tmp_path / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + bytes(2**25))
    for name in ("expanded.ckpt", "bomb.ckpt"):
        with pytest.raises(ValueError, match="claims"):
            FinetuneClassifier.load_from_checkpoint(tmp_path / name)


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize("how", ["fit", "validate", "test", "predict"])
@pytest.mark.parametrize("place", ["here", "http"])
@pytest.mark.parametrize("write", [pickled, pickled_in_the_old_format])
def test_a_trainer_of_ones_own_runs_nothing_either(
    write: Callable[[Path], object],
    place: str,
    how: str,
    tmp_path: Path,
    address: Callable[[Path], str],
) -> None:
    path = tmp_path / "foreign.ckpt"
    write(path)
    model = FinetuneClassifier(Net(), num_classes=2)
    with pytest.raises(ValueError, match=r"foreign\.ckpt"):
        getattr(make_trainer(), how)(
            model, loader(), ckpt_path=str(path) if place == "here" else address(path)
        )
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_is_fetched_as_data(own: Path, address: Callable[[Path], str]) -> None:
    loaded = FinetuneClassifier.load_from_checkpoint(
        address(own), backbone=Net(8), backbone_kwargs=None
    )
    make_trainer().validate(loaded, loader(), ckpt_path=address(own))
    expected = torch.load(own, weights_only=True)["state_dict"]
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
    kept = Path(torch.hub.get_dir()) / "checkpoints" / own.name
    assert not kept.exists()


class Mark:
    """An object of a class of one's own, in a checkpoint."""


@pytest.mark.parametrize("how", ["load_from_checkpoint", "fit", "validate", "strategy"])
def test_nothing_is_unpickled_even_where_it_is_asked_for(how: str, own: Path) -> None:
    model, trainer = FinetuneClassifier(Net(8), num_classes=2), make_trainer()
    content = torch.load(own, weights_only=True)
    torch.save({**content, "evil": Runs()}, own)
    trainer.fit(model, loader())
    load: Mapping[str, Callable[..., Any]] = {
        "load_from_checkpoint": partial(FinetuneClassifier.load_from_checkpoint, own),
        "fit": partial(make_trainer().fit, model, loader(), ckpt_path=str(own)),
        "validate": partial(make_trainer().validate, model, loader(), ckpt_path=str(own)),
        "strategy": partial(trainer.strategy.load_checkpoint, own),
    }
    with pytest.raises(ValueError, match=r"weights_only=False.*add_safe_globals"):
        load[how](weights_only=False)
    assert not Path("ran").exists()


def test_classes_of_ones_own_are_named_to_torch(own: Path) -> None:
    torch.save({**torch.load(own, weights_only=True), "mark": Mark()}, own)
    again = {"backbone": Net(8), "backbone_kwargs": None}
    with pytest.raises(ValueError, match=r"Mark` would be imported"):
        FinetuneClassifier.load_from_checkpoint(own, **again)
    with torch.serialization.safe_globals([Mark]):
        loaded = FinetuneClassifier.load_from_checkpoint(own, **again)
        make_trainer().validate(loaded, loader(), ckpt_path=str(own), verbose=False)


def test_an_address_that_brings_nothing_is_named(address: Callable[[Path], str], own: Path) -> None:
    missing = address(own).replace("own", "missing")
    with pytest.raises(ConnectionError, match=r"missing\.ckpt"):
        FinetuneClassifier.load_from_checkpoint(missing)


@pytest.mark.parametrize("place", ["here", "http"])
def test_a_data_module_takes_no_name_from_a_checkpoint(
    place: str, tmp_path: Path, address: Callable[[Path], str]
) -> None:
    said = {"_instantiator": CLI, "train_augmentation": {"class_path": EVIL}, "cache_dir": "here"}
    state = {"DigitsDataModule": {"run_seed": 5}, "hyper_parameters": {}}
    file = save(tmp_path / "hostile.ckpt", {"datamodule_hyper_parameters": said, **state})
    with watched() as events:
        data = DigitsDataModule.load_from_checkpoint(file if place == "here" else address(file))
    assert_nothing_happened([event for event in events if "socket" not in event[0]], tmp_path)
    assert data.state_dict() == {"run_seed": 5}
    assert data.cache_dir is None


def test_a_pickled_file_is_no_checkpoint_of_a_data_module(
    tmp_path: Path, address: Callable[[Path], str]
) -> None:
    pickled(tmp_path / "foreign.ckpt")
    with pytest.raises(ValueError, match="more than plain data"):
        DigitsDataModule.load_from_checkpoint(address(tmp_path / "foreign.ckpt"))
    assert not (tmp_path / "ran").exists()

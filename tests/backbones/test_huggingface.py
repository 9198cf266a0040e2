"""Networks of Hugging Face transformers, at sizes for tests and without a network connection."""

import json
import math
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.hf_families import NAMED, NOT_SUPPORTED, OTHERS, TINY_CONFIGS
from lit_finetune import FinetuneClassifier
from lit_finetune.backbones.create import create_backbone
from lit_finetune.backbones.image_processor import processor_data_config
from lit_finetune.callbacks import FreezeUnfreezeCallback
from lit_finetune.images.data_config import DataConfig, eval_transform

transformers = pytest.importorskip("transformers")

CLASSES = 3
every_family = pytest.mark.parametrize(
    "kind", [*NAMED, *(pytest.param(kind, marks=pytest.mark.long) for kind in OTHERS)]
)


@pytest.fixture(autouse=True)
def _without_words() -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def tiny(kind: str, **arguments: Any) -> FinetuneClassifier:
    kwargs = {**TINY_CONFIGS[kind], **arguments.pop("backbone_kwargs", {})}
    arguments = {"num_classes": CLASSES, **arguments}
    return FinetuneClassifier(f"hf/{kind}", backbone_kwargs=kwargs, **arguments)


def original(kind: str, *, num_labels: int = CLASSES, **fields: Any) -> nn.Module:
    """The network as transformers builds it, all weights of which are different."""
    config = transformers.AutoConfig.for_model(kind, **TINY_CONFIGS[kind], **fields)
    config.num_labels = num_labels
    mapping = transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    found = (mapping if type(config) in mapping else transformers.MODEL_MAPPING)[type(config)]
    network: nn.Module = (found[0] if isinstance(found, tuple) else found)(config)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network.eval()


def saved(network: Any, folder: Path, **processor: Any) -> Path:
    network.save_pretrained(folder)
    if processor:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def pictures(model: FinetuneClassifier, number: int = 2) -> Tensor:
    return torch.randn(number, 3, *model.data_config.image_size)


def trained(
    model: FinetuneClassifier, schedule: Any, *callbacks: Callback, **options: Any
) -> Trainer:
    data = TensorDataset(pictures(model, 6), torch.arange(6) % model.num_classes)
    trainer = Trainer(
        **{
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **options,
        },
        callbacks=[FreezeUnfreezeCallback(schedule), *callbacks],
    )
    trainer.fit(model, DataLoader(data, batch_size=3))
    return trainer


@every_family
def test_the_network_gives_a_score_for_each_class_and_every_parameter_is_in_one_block(
    kind: str,
) -> None:
    model = tiny(kind)
    names = [name for name, _ in model.named_parameters()]

    assert model.eval()(pictures(model)).shape == (2, CLASSES)
    assert sorted(name for block in model.blocks for name in block.parameters) == sorted(names)
    assert model.blocks[-1].name == "head"
    assert set(model.blocks[-1].parameters) == {
        f"backbone.{model.head_name}.weight",
        f"backbone.{model.head_name}.bias",
    }
    assert len(model.blocks) >= 4


def in_memory_of_its_own(network: nn.Module) -> nn.Module:
    """Where transformers leaves weights in the file's memory, they may begin at any byte.

    Of tensors that are not aligned torch sums in another order: the last bit may differ.
    """
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.clone()
    return network


@every_family
def test_with_the_same_weights_the_logits_are_those_of_transformers_to_the_last_bit(
    kind: str, tmp_path: Path
) -> None:
    saved(original(kind), tmp_path)
    model = FinetuneClassifier(f"hf/{tmp_path}", num_classes=CLASSES).eval()
    x = torch.randn(2, 3, *tiny(kind).data_config.image_size)
    network = type(getattr(model.backbone, "features", model.backbone))
    theirs = in_memory_of_its_own(network.from_pretrained(tmp_path).eval())(x)

    assert model.load_report is not None
    assert model.load_report.share == 1.0
    if hasattr(theirs, "logits"):
        assert torch.equal(model(x), theirs.logits)
    else:
        assert torch.equal(model.forward_features(x), theirs.pooler_output)


@pytest.mark.slow
@pytest.mark.parametrize("kind", NAMED)
def test_a_training_in_two_phases_moves_what_the_schedule_says_and_nothing_else(kind: str) -> None:
    model = tiny(kind, lr=0.1)
    parts = {block.name: block.parameters for block in model.blocks}
    head, last = parts["head"], parts[model.blocks[-2].name]
    states = States()

    trained(model, {0: "head", 1: model.blocks[-2].name}, states, max_epochs=2)

    start, middle, end = states.seen
    assert changed(start, middle) == set(head)
    moved = changed(middle, end) - set(head)
    assert moved <= {*last, *buffers_beside(model, last)}
    assert len(moved & set(last)) > len(last) / 2  # a key's bias, for one, has no effect


class States(Callback):
    """The weights at the start and after each epoch."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seen.append({name: t.clone() for name, t in pl_module.state_dict().items()})

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_train_start(trainer, pl_module)


def changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> set[str]:
    network = {name for name in after if name.startswith("backbone.")}
    return {name for name in network if not torch.equal(before[name], after[name])}


def buffers_beside(model: nn.Module, parameters: tuple[str, ...]) -> set[str]:
    modules = {name.rpartition(".")[0] for name in parameters}
    return {name for name, _ in model.named_buffers() if name.rpartition(".")[0] in modules}


@every_family
def test_every_parameter_has_a_part_in_the_logits(kind: str) -> None:
    model = tiny(kind).train()
    model(pictures(model, 4)).square().sum().backward()

    assert not [name for name, value in model.named_parameters() if value.grad is None]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vit", "resnet", "siglip", "siglip_vision_model"])
def test_a_checkpoint_is_loaded_without_the_folder_that_the_network_came_from(
    kind: str, tmp_path: Path
) -> None:
    folder = saved(original(kind, num_labels=7), tmp_path / "pretrained", image_mean=[0.1] * 3)
    model = FinetuneClassifier(f"hf/{folder}", num_classes=CLASSES, head="mlp")
    trained(model, "full", max_epochs=1).save_checkpoint(tmp_path / "last.ckpt")
    shutil.rmtree(folder)

    again = FinetuneClassifier.load_from_checkpoint(tmp_path / "last.ckpt").eval()

    x = pictures(model)
    assert torch.equal(again(x), model.eval()(x))
    assert again.hparams["backbone"] == f"hf/{kind}"
    assert [block.name for block in again.blocks] == [block.name for block in model.blocks]


@pytest.mark.parametrize("kind", ["vit", "dinov3_vit"])
def test_a_checkpoint_with_the_names_of_another_version_of_transformers_is_loaded(
    kind: str, tmp_path: Path
) -> None:
    model = tiny(kind)
    trained(model, "full", max_epochs=1).save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    prefix = "backbone." if kind == "vit" else "backbone.features."
    inner: Any = model.backbone if kind == "vit" else model.backbone.features
    inner.save_pretrained(tmp_path)
    other = {f"{prefix}{n}": t for n, t in load_file(tmp_path / "model.safetensors").items()}
    head = {n: t for n, t in checkpoint["state_dict"].items() if n.startswith("backbone.head.")}
    assert other.keys() != checkpoint["state_dict"].keys()
    torch.save({**checkpoint, "state_dict": {**other, **head}}, tmp_path / "other.ckpt")

    again = FinetuneClassifier.load_from_checkpoint(tmp_path / "other.ckpt").eval()
    x = pictures(model)
    assert torch.equal(again(x), model.eval()(x))


def test_a_head_for_another_number_of_classes_is_new_and_the_report_says_so(tmp_path: Path) -> None:
    network = original("vit", num_labels=7)
    model = FinetuneClassifier(f"hf/{saved(network, tmp_path)}", num_classes=CLASSES)

    assert model.load_report is not None
    assert model.load_report.head_dropped == ("classifier.weight", "classifier.bias")
    assert model.load_report.share == 1.0
    assert model.backbone.config.num_labels == CLASSES
    assert torch.equal(model.backbone.vit.layernorm.weight, network.vit.layernorm.weight)


def test_the_classes_of_a_head_that_stays_are_called_as_in_the_config(tmp_path: Path) -> None:
    names = {0: "ant", 1: "bee", 2: "fly"}
    folder = saved(original("vit", id2label=names), tmp_path)

    assert FinetuneClassifier(f"hf/{folder}", num_classes=3).classes == ["ant", "bee", "fly"]
    assert FinetuneClassifier(f"hf/{folder}", num_classes=2).classes == ["0", "1"]
    assert tiny("vit").classes == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("entry", "prefix"), [("", ""), ("state_dict", "model."), ("model", "module.net.")]
)
@pytest.mark.parametrize("kind", ["vit", "dinov2", "resnet", "dinov3_vit"])
def test_a_weights_file_fits_under_the_names_of_the_file_and_under_those_of_the_network(
    kind: str, entry: str, prefix: str, tmp_path: Path
) -> None:
    fields = {"use_swiglu_ffn": True} if kind == "dinov2" else {}
    network: Any = original(kind, **fields)
    network.save_pretrained(tmp_path)
    for state in (load_file(tmp_path / "model.safetensors"), network.state_dict()):
        named = {prefix + name: tensor for name, tensor in state.items()}
        torch.save({entry: named, "epoch": 3} if entry else named, tmp_path / "file.ckpt")
        model = tiny(kind, backbone_kwargs=fields, weights=str(tmp_path / "file.ckpt"))
        inner = getattr(model.backbone, "features", model.backbone)

        assert model.load_report is not None
        assert model.load_report.share == 1.0
        assert model.load_report.stripped in (prefix, "")  # some prefixes transformers takes off
        theirs = network.state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in inner.state_dict().items())


def test_a_transformer_inside_a_users_network_is_filled_from_transformers_own_file(
    tmp_path: Path,
) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body: Any = original("vit").vit
            self.fc = nn.Linear(16, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.body(x).last_hidden_state[:, 0])

    network = original("vit")
    saved(network, tmp_path)
    model = FinetuneClassifier(
        Net(), num_classes=CLASSES, weights=str(tmp_path / "model.safetensors")
    )
    assert model.load_report is not None
    assert model.load_report.share == 1.0
    theirs: Any = network
    assert all(map(torch.equal, model.backbone.body.parameters(), theirs.vit.parameters()))


def test_weights_keep_all_their_digits_whatever_type_the_config_names(tmp_path: Path) -> None:
    network = original("vit")
    saved(network, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "dtype": "float16"}))
    model = FinetuneClassifier(f"hf/{tmp_path}", num_classes=CLASSES)

    for ours, theirs in zip(model.backbone.parameters(), network.parameters(), strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs)


def test_of_a_network_with_a_teachers_head_the_backbone_is_taken(tmp_path: Path) -> None:
    config = transformers.DeiTConfig(**TINY_CONFIGS["deit"], num_labels=CLASSES)
    transformers.DeiTForImageClassificationWithTeacher(config).save_pretrained(tmp_path)
    model = FinetuneClassifier(f"hf/{tmp_path}", num_classes=CLASSES)

    assert model.load_report is not None
    assert model.load_report.share == 1.0
    assert len(model.load_report.unexpected) == 4
    assert model.head_name == "classifier"


def test_a_file_that_is_of_another_network_is_refused(tmp_path: Path) -> None:
    save_file({"conv.weight": torch.zeros(3, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"fits 0.0%"):
        tiny("vit", weights=str(tmp_path / "other.safetensors"))


@pytest.mark.parametrize("kind", ["vit", "swin", "beit", "dinov2", "siglip", "siglip_vision_model"])
def test_pictures_of_another_size_are_let_in(kind: str) -> None:
    model = tiny(kind).eval()
    side = 2 * model.data_config.image_size[0]
    assert model(torch.randn(2, 3, side, side)).shape == (2, CLASSES)


@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("kind", ["vit", "resnet", "siglip_vision_model"])
def test_heads_and_dropout_are_put_in(kind: str, head: str) -> None:
    model = tiny(kind, head=head, drop_rate=0.5).train()
    assert model(pictures(model)).shape == (2, CLASSES)
    with torch.no_grad():
        x = pictures(model)
        model.backbone.eval()
        model.get_classifier().train()
        assert not torch.equal(model(x), model(x))


VIT_FILE = {
    "size": {"height": 224, "width": 224},
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "resample": 2,
}


@pytest.mark.parametrize(
    ("processor", "config"),
    [
        (
            VIT_FILE,
            DataConfig(mean=(0.5,) * 3, std=(0.5,) * 3, resize_size=224, crop_mode="squash"),
        ),
        (
            {"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 3},
            DataConfig(interpolation="bicubic"),
        ),
        (
            {"size": 384, "crop_pct": 1.0, "resample": 3},
            DataConfig(
                image_size=(384, 384),
                resize_size=384,
                interpolation="bicubic",
                crop_mode="squash",
            ),
        ),
        (
            {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": 224},
            DataConfig(),
        ),
        (
            {"do_normalize": False, "do_rescale": False, "size": 256, "resample": 1},
            DataConfig(
                mean=(0.0,) * 3,
                std=(1 / 255,) * 3,
                image_size=(256, 256),
                interpolation="bicubic",
                crop_mode="squash",
            ),
        ),
        (
            {
                "size": 256,
                "do_center_crop": True,
                "image_processor_type": "MobileViTImageProcessor",
            },
            DataConfig(image_size=(256, 256)),
        ),
    ],
)
def test_what_an_image_processor_does_is_what_the_data_config_says(
    processor: dict[str, Any], config: DataConfig
) -> None:
    assert processor_data_config(processor) == config


PROCESSORS: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("ViT", "DeiT", "CLIP", "EfficientNet", "Levit", "PoolFormer", "Bit")},
    **{name: {} for name in ("Siglip", "Beit", "MobileNetV1", "MobileNetV2")},
    "ConvNext": {"size": {"shortest_edge": 224}},
    "ConvNext at 384": {"size": {"shortest_edge": 384}},
}


@pytest.mark.parametrize("shape", [(300, 300), (280, 420), (400, 250)])
@pytest.mark.parametrize("kind", PROCESSORS)
def test_pictures_become_the_same_pixels_as_with_transformers(
    kind: str, shape: tuple[int, int]
) -> None:
    from PIL import Image

    name, options = kind.split()[0], PROCESSORS[kind]
    plain = getattr(transformers, f"{name}ImageProcessorPil", None)
    processor = (plain or getattr(transformers, f"{name}ImageProcessor"))(**options)
    noise = torch.randint(0, 255, (*shape, 3), dtype=torch.uint8)
    picture = Image.fromarray(noise.numpy())

    theirs = processor(picture, return_tensors="pt")["pixel_values"][0]
    ours = eval_transform(processor_data_config(processor.to_dict()))(picture)

    torch.testing.assert_close(ours, theirs)


def test_pictures_in_bgr_are_refused() -> None:
    with pytest.raises(ValueError, match="RGB to BGR"):
        processor_data_config({"do_flip_channel_order": True})


def test_the_data_config_is_the_folders_unless_an_image_size_is_asked_for(tmp_path: Path) -> None:
    processor = {"size": {"height": 48, "width": 48}, "image_mean": [0.1, 0.2, 0.3]}
    folder = saved(original("vit"), tmp_path, **processor, image_std=[0.4] * 3, resample=3)

    config = create_backbone(f"hf/{folder}").data_config
    assert config.mean == (0.1, 0.2, 0.3)
    assert config.image_size == (48, 48)
    assert config.interpolation == "bicubic"
    smaller = create_backbone(f"hf/{folder}", backbone_kwargs={"image_size": 16}).data_config
    assert smaller.image_size == (16, 16)
    assert tiny("vit").data_config.image_size == (32, 32)


def test_a_config_file_is_a_network_without_weights(tmp_path: Path) -> None:
    folder = saved(original("resnet"), tmp_path, **VIT_FILE)
    built = create_backbone(f"hf/{folder}/config.json")

    assert built.weights_file is None
    assert built.network.config.hidden_sizes == [8, 16, 16, 32]
    assert built.data_config.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("backbone", "arguments", "message"),
    [
        ("hf/vitt", {}, "no model type and no folder 'vitt'. Did you mean 'vit"),
        ("hf/./here/there", {}, "no model type and no folder './here/there'"),
        ("hf/empty", {}, "empty has no `config.json`. It has: notes.txt"),
        ("hf/bare", {}, "bare has none of model.safetensors.*`hf/bare/config.json`"),
    ],
)
def test_a_folder_or_file_that_is_not_there_is_an_error(
    backbone: str, arguments: dict[str, Any], message: str
) -> None:
    Path("empty").mkdir()
    Path("empty/notes.txt").touch()
    Path("bare").mkdir()
    Path("bare/config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(FileNotFoundError, match=message):
        create_backbone(backbone, **arguments)


@pytest.mark.parametrize(
    ("backbone", "arguments", "message"),
    [
        ("hf/vit", {"weights": "pretrained"}, "'pretrained', but hf/vit is an architecture"),
        ("hf/f", {"weights": "DEFAULT"}, "'DEFAULT'.*Choose one of: pretrained"),
        ("hf/vit", {"backbone_kwargs": {"hiden_size": 4}}, "no 'hiden_size'.*'hidden_size'"),
        ("hf/vit", {"backbone_kwargs": {"hidden_size": "a"}}, "hf/vit (cannot be|is invalid)"),
        ("hf/bert", {}, "type 'bert', which does not take pictures"),
        ("hf/f", {}, "type 'newnet', unknown to transformers, and asks for code .* never run"),
        ("hf/list.json", {}, "list.json is no config: it holds a list"),
        ("hf/broken.json", {}, "broken.json is no JSON"),
    ],
)
def test_what_cannot_be_built_is_an_error(
    backbone: str, arguments: dict[str, Any], message: str
) -> None:
    Path("f").mkdir()
    Path("f/config.json").write_text('{"model_type": "newnet", "auto_map": {"AutoConfig": "x.Y"}}')
    Path("f/model.safetensors").touch()
    Path("list.json").write_text("[]")
    Path("broken.json").write_text("{")
    with pytest.raises(ValueError, match=message):
        create_backbone(backbone, **arguments)


@pytest.mark.parametrize("kind", sorted(NOT_SUPPORTED.keys() - {"dinat", "pp_lcnet"}))
def test_what_is_not_supported_is_an_error_and_not_a_wrong_result(kind: str) -> None:
    with pytest.raises(ValueError, match=r"pixel_values|several layers|use `timm/"):
        FinetuneClassifier(f"hf/{kind}", num_classes=CLASSES)


def test_a_model_of_the_hub_is_taken_from_the_cache_without_a_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--tiny-vit"
    network = original("vit")
    saved(network, repository / "snapshots" / "abc", **VIT_FILE)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")

    model = FinetuneClassifier("hf/someone/tiny-vit", weights="pretrained", num_classes=CLASSES)
    assert all(map(torch.equal, model.backbone.parameters(), network.parameters()))
    assert create_backbone("hf/someone/tiny-vit").weights_file is None
    with pytest.raises(ConnectionError, match=r"no folder 'someone/else' here.*name a folder"):
        create_backbone("hf/someone/else")


@pytest.mark.parametrize(
    ("file", "fields", "words"),
    [
        ("config.json", {"quantization_config": {"quant_method": "bitsandbytes"}}, "bitsandbytes"),
        ("config.json", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
        ("preprocessor_config.json", {"size": "x"}, "'x'"),
        ("preprocessor_config.json", {"size": {"height": 10**9, "width": 10**9}}, "1000000000"),
        ("preprocessor_config.json", {"image_mean": [123.0] * 3}, "0.4824"),
        ("preprocessor_config.json", {"image_std": [0.0] * 3}, "above 0"),
        ("preprocessor_config.json", {"image_mean": [math.nan] * 3}, "finite"),
    ],
)
def test_a_folder_that_cannot_be_used_is_told_with_its_value(
    tmp_path: Path, file: str, fields: dict[str, Any], words: str
) -> None:
    folder = saved(original("vit"), tmp_path / "net")
    before = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    (folder / file).write_text(json.dumps({**before, **fields}))

    with pytest.raises(ValueError, match=words):
        FinetuneClassifier(f"hf/{folder}", num_classes=CLASSES)


def test_without_transformers_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lit-finetune\[huggingface\]'"):
        create_backbone("hf/vit")


@pytest.mark.parametrize(
    ("name", "near"),
    [("kept/vti", "'vit'"), ("./vti", ""), ("~/vti", ""), ("a/b/c", ""), ("vti", "")],
)
def test_what_looks_like_a_folder_never_asks_the_hub(
    name: str, near: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repo, **_: asked.append(repo))
    (tmp_path / "kept" / "vit").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=rf"there is no .*folder '{name}'.*{near}"):
        create_backbone(f"hf/{name}")
    assert not asked


def test_a_name_that_may_be_either_is_told_as_both(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no network\nand much more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    told = "no folder 'someone/net' here, and the hub gave no such model .*no network"
    with pytest.raises(ConnectionError, match=told) as caught:
        create_backbone("hf/someone/net")
    assert "much more" not in str(caught.value)

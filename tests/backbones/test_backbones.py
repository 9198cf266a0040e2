import math
import socket
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lit_finetune.backbones.create import create_backbone, is_weights_file
from lit_finetune.backbones.timm import data_config
from lit_finetune.images.data_config import DataConfig

timm = pytest.importorskip("timm")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every connection is refused at once, and nothing was downloaded before."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        proxy = f"http://127.0.0.1:{closed.getsockname()[1]}"
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, proxy)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("squeezenet1_1", DataConfig()),
        ("inception_v3", DataConfig(image_size=(299, 299), resize_size=342)),
        (
            "efficientnet_b1",
            DataConfig(image_size=(240, 240), resize_size=256, interpolation="bicubic"),
        ),
    ],
)
def test_a_torchvision_name_gives_the_network_and_what_pictures_it_expects(
    name: str, config: DataConfig
) -> None:
    with torch.device("meta"):
        backbone = create_backbone(name)
    assert backbone.data_config == config
    assert backbone.name == name
    images = torch.zeros(2, 3, *config.image_size, device="meta")
    assert backbone.network.eval()(images).shape == (2, 1000)


@pytest.mark.parametrize(
    ("name", "sizes"), [("googlenet", [1000] * 3), ("inception_v3", [1000] * 2)]
)
def test_auxiliary_heads_are_there_unless_they_are_not_wanted(name: str, sizes: list[int]) -> None:
    images = torch.zeros(2, 3, 299, 299, device="meta")
    with torch.device("meta"):
        network = create_backbone(name).network.train()
        without = create_backbone(name, backbone_kwargs={"aux_logits": False}).network.train()
    assert [logits.shape[1] for logits in network(images)] == sizes
    assert network.transform_input
    assert network.eval()(images).shape == (2, 1000)
    assert without(images).shape == (2, 1000)


def test_arguments_reach_the_network_and_its_image_size_the_data_config() -> None:
    with torch.device("meta"):
        backbone = create_backbone("vit_b_32", backbone_kwargs={"image_size": 64, "num_classes": 3})
    assert backbone.data_config == DataConfig(image_size=(64, 64), resize_size=73)
    assert backbone.network.heads.head.out_features == 3


def test_a_timm_name_gives_the_network_and_what_pictures_it_expects() -> None:
    backbone = create_backbone("timm/test_vit", backbone_kwargs={"num_classes": 3})
    expected = timm.data.resolve_model_data_config(timm.create_model("test_vit"))
    assert backbone.data_config == data_config(expected)
    assert backbone.data_config.image_size == (160, 160)
    assert backbone.data_config.resize_size == 168
    assert backbone.network.head.out_features == 3


def test_a_network_from_elsewhere_can_be_built_from_plain_data(data_root: Path) -> None:
    kwargs = {
        "pad_type": "same",
        "bn_eps": 0.001,
        "pretrained_cfg_overlay": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
    }
    backbone = create_backbone("timm/mobilenetv2_035", backbone_kwargs=kwargs)
    assert backbone.data_config.mean == backbone.data_config.std == (0.5, 0.5, 0.5)
    norms = [m for m in backbone.network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {norm.eps for norm in norms} == {0.001}
    state = load_file(data_root / "weights" / "mobilenetv2_035-imagenet-notop.safetensors")
    missing, unexpected = backbone.network.load_state_dict(state, strict=False)
    assert missing == ["classifier.weight", "classifier.bias"]
    assert not unexpected


def test_the_data_config_of_every_timm_name_is_timms_own() -> None:
    for name in timm.list_pretrained():
        given = timm.get_pretrained_cfg(name).to_dict()
        own = timm.data.resolve_data_config(pretrained_cfg=given)
        config = data_config(own)
        assert config.image_size == own["input_size"][1:]
        assert config.resize_size == math.floor(min(config.image_size) / own["crop_pct"])
        if own["crop_pct"] > 1:
            own["crop_mode"] = "pad"
        fields = ("mean", "std", "interpolation", "crop_mode")
        assert {key: getattr(config, key) for key in fields} == {key: own[key] for key in fields}


def test_an_import_path_names_a_class_or_a_function_in_the_working_directory_too() -> None:
    Path("my_nets_of_a_test.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self, width=4):\n"
        "        super().__init__(nn.Linear(width, 2))\n"
        "def wide():\n"
        "    return Net(width=16)\n"
        "def broken():\n"
        "    return 'a string'\n"
        "size = 4\n"
    )
    net = create_backbone("my_nets_of_a_test.Net", backbone_kwargs={"width": 8})
    assert net.network[0].in_features == 8
    assert net.name == "my_nets_of_a_test.Net"
    assert create_backbone("my_nets_of_a_test.wide").network[0].in_features == 16
    for name, message in {
        "broken": "must return an `nn.Module`, but it returned 'a string'",
        "size": "is 4: not a class",
        "wode": "has no 'wode'. Did you mean 'wide'",
    }.items():
        with pytest.raises(ValueError, match=message):
            create_backbone(f"my_nets_of_a_test.{name}")
    with pytest.raises(ValueError, match=r"unexpected keyword argument 'depth'.*width=4"):
        create_backbone("my_nets_of_a_test.Net", backbone_kwargs={"depth": 3})


def test_what_a_users_module_fails_to_import_is_not_taken_for_the_module_itself() -> None:
    Path("needs_of_a_test.py").write_text("import something_not_installed\n")
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'something_not_installed'"):
        create_backbone("needs_of_a_test.Net")


def test_a_network_is_taken_as_it_is() -> None:
    network = nn.Linear(4, 2)
    backbone = create_backbone(network)
    assert backbone.network is network
    assert (backbone.name, backbone.data_config) == ("Linear", DataConfig())


@pytest.mark.parametrize(
    ("backbone", "arguments", "message"),
    [
        ("resnet19", {}, "no classifier 'resnet19'. Did you mean 'resnet18'"),
        ("deeplabv3_resnet50", {}, "no classifier 'deeplabv3_resnet50'"),
        ("timm/resnet19", {}, "timm has no model 'resnet19'. Did you mean 'resnet18'"),
        ("timm/resnet18.a9_in1k", {}, "Unknown tag.*'a9_in1k'.*a1_in1k"),
        ("resnet18", {"weights": "IMAGENET"}, "'IMAGENET'.*Choose one of: DEFAULT, IMAGENET1K_V1"),
        ("timm/test_vit", {"weights": "DEFAULT"}, "'DEFAULT'.*Choose one of: pretrained"),
        ("timm/test_mambaout", {"weights": "pretrained"}, "no weights for 'test_mambaout'"),
        ("torch.nn.ReLU", {"weights": "DEFAULT"}, "`weights` is 'DEFAULT'.*path of a file"),
        ("resnet18", {"backbone_kwargs": {"depth": 3}}, "do not fit torchvision's resnet18.*depth"),
        ("timm/test_vit", {"backbone_kwargs": {"width": 3}}, "do not fit timm/test_vit.*width"),
        (nn.ReLU(), {"backbone_kwargs": {"width": 3}}, "'width': 3.*built already"),
        (nn.ReLU(), {"weights": "DEFAULT"}, "`weights` is 'DEFAULT'.*path of a file"),
        ("resnet18", {"weights": "runs/best.ckpt"}, "'runs/best.ckpt' is a file.*load_weights"),
    ],
)
def test_what_there_is_not_is_an_error(
    backbone: str | nn.Module, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        create_backbone(backbone, **arguments)


def test_a_module_that_is_not_there_is_an_error_that_says_what_a_backbone_can_be() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"no module `my_nits`.*`timm/<name>`"):
        create_backbone("my_nits.nets.Net")


@pytest.mark.usefixtures("no_network")
def test_weights_that_cannot_be_downloaded_are_an_error_that_names_the_way_out() -> None:
    with pytest.raises(ConnectionError, match=r"IMAGENET1K_V1 of resnet18.*weights: path/to"):
        create_backbone("resnet18", weights="DEFAULT")


def test_without_timm_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lit-finetune\[timm\]'"):
        create_backbone("timm/test_vit")


@pytest.mark.parametrize(
    ("weights", "answer"),
    [
        ("model.pth", True),
        ("runs/best.ckpt", True),
        ("folder/no_suffix", True),
        ("here", True),
        ("DEFAULT", False),
        ("IMAGENET1K_V1", False),
        ("pretrained", False),
    ],
)
def test_a_weights_file_is_told_from_a_name(weights: str, answer: bool) -> None:
    Path("here").touch()
    assert is_weights_file(weights) is answer

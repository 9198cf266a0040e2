"""A weights file has to fill the layers of a network, not only most of its numbers."""

import copy
import re
from itertools import pairwise
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.resnet import BasicBlock

from lit_finetune.weights.load import load_weights

State = dict[str, Tensor]
HIDDEN = 1024


class Vgg(nn.Module):
    """97 % of the backbone's parameters are in one hidden linear layer."""

    def __init__(self, width: int = 16, in_chans: int = 3, num_classes: int = 10) -> None:
        super().__init__()
        channels = [in_chans, width, 2 * width, 32]
        convolutions = [nn.Conv2d(a, b, 3, 2, 1) for a, b in pairwise(channels)]
        self.features = nn.Sequential(*convolutions)
        self.norm = nn.BatchNorm2d(32)
        self.classifier = nn.Sequential(
            nn.Linear(512, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, num_classes)
        )


def test_a_whole_file_reports_all_layers(tmp_path: Path) -> None:
    torch.save(Vgg(num_classes=4).state_dict(), tmp_path / "a.pth")
    report = load_weights(Vgg(), tmp_path / "a.pth")
    assert (report.layers.filled, report.layers.total) == (5, 5)
    assert "5 of 5 layers, 3 of 3 convolutions" in str(report)


FEW = {
    "no convolution": lambda: {n: v for n, v in Vgg().state_dict().items() if "features" not in n},
    "the first convolution": lambda: {
        n: v
        for n, v in Vgg().state_dict().items()
        if not n.startswith(("features.1", "features.2"))
    },
    "other widths": lambda: Vgg(width=24).state_dict(),
    "the hidden layer": lambda: {
        n: v for n, v in Vgg().state_dict().items() if n.startswith("classifier")
    },
    "no convolution's weight": lambda: {
        n: v for n, v in Vgg().state_dict().items() if n[-6:] != "weight" or "features" not in n
    },
}


@pytest.mark.parametrize("few", FEW)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_few_layers_with_most_of_the_numbers_are_refused(
    tmp_path: Path, few: str, prefix: str
) -> None:
    torch.save({prefix + name: value for name, value in FEW[few]().items()}, tmp_path / "a.pth")
    network = Vgg()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ValueError, match=r"fits 9\d\.\d%.*but only \d of 5 layers, [01] of 3 conv"):
        load_weights(network, tmp_path / "a.pth")
    assert all(value.equal(before[name]) for name, value in network.state_dict().items())
    assert load_weights(network, tmp_path / "a.pth", min_match=0).share > 0.9


def small_vit() -> nn.Module:
    return torchvision.models.VisionTransformer(32, 8, 12, 2, hidden_dim=64, mlp_dim=256)


def without(state: State, *parts: str) -> State:
    return {name: value for name, value in state.items() if not any(p in name for p in parts)}


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    """Real architectures, some of them less wide; which tensors there are is what counts here."""
    models = torchvision.models
    return {
        "resnet": models.ResNet(BasicBlock, [1, 1, 1, 1]),
        "convnext": models.ConvNeXt(
            [CNBlockConfig(8, 16, 2), CNBlockConfig(16, 32, 2), CNBlockConfig(32, None, 3)]
        ),
        "mobilenet_v2": models.mobilenet_v2(width_mult=0.35),
        "densenet": models.DenseNet(8, (2, 2, 4), 16),
        "vit": small_vit(),
        "squeezenet": models.squeezenet1_1(),
        "timm vit": timm.create_model("vit_tiny_patch16_224", img_size=32, depth=12, embed_dim=24),
    }


def alike(network: nn.Module) -> nn.Module:
    return copy.deepcopy(network)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("resnet", ("running_",)),  # all weights, and features that no picture ever had
        ("resnet", ("bn1", "bn2", "downsample.1")),
        ("convnext", ("block.0.",)),  # the depthwise convolutions: few of the numbers
        ("mobilenet_v2", ("conv.1.0.weight",)),
        ("vit", ("conv_proj",)),  # every picture passes it
        # Whole blocks that stand before others: every picture passes each of them.
        ("vit", ("layer_0.",)),
        ("vit", ("layer_5.",)),
        ("timm vit", ("blocks.3.",)),
        ("resnet", ("conv1.weight", "layer")),
        ("resnet", ("layer1",)),
        ("mobilenet_v2", ("features.0.",)),
        ("mobilenet_v2", ("features.1.", "features.2.")),
        ("densenet", ("conv0",)),
        ("squeezenet", ("features.0.",)),
        ("squeezenet", ("features.3.",)),
        ("convnext", ("features.0.",)),
    ],
)
def test_layers_of_a_kind_that_are_missing_are_refused(
    tmp_path: Path, networks: dict[str, nn.Module], name: str, parts: tuple[str, ...]
) -> None:
    network = networks[name]
    torch.save(without(network.state_dict(), *parts), tmp_path / "a.pth")
    with pytest.raises(ValueError, match="the network was left as it is") as refused:
        load_weights(network, tmp_path / "a.pth")
    low = re.search(r"lower `min_match`, to ([\d.]+) or less", str(refused.value))
    assert low
    assert load_weights(alike(network), tmp_path / "a.pth", min_match=float(low[1])).matched


@pytest.mark.parametrize("name", ["resnet", "convnext", "densenet", "squeezenet", "timm vit"])
def test_a_whole_file_of_a_real_architecture_loads(
    tmp_path: Path, networks: dict[str, nn.Module], name: str
) -> None:
    torch.save(networks[name].state_dict(), tmp_path / "a.pth")
    report = load_weights(alike(networks[name]), tmp_path / "a.pth")
    assert (report.share, report.layers.filled) == (1, report.layers.total)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("resnet", ("fc.",)),  # a backbone without its head, as detection has it
        ("vit", ("pos_embedding", "class_token", "heads.")),
        ("vit", ("encoder.ln.",)),  # the norm before another head
        ("timm vit", ("blocks.11.",)),  # the last one learns as a head does
    ],
)
@pytest.mark.parametrize("prefix", ["", "module.", "backbone.body.", "model.encoder."])
def test_what_a_head_of_another_kind_lacks_is_no_gap(
    tmp_path: Path,
    networks: dict[str, nn.Module],
    name: str,
    parts: tuple[str, ...],
    prefix: str,
) -> None:
    state = without(networks[name].state_dict(), *parts)
    state = {prefix + key: value for key, value in state.items()}
    torch.save({"model": state | {"rpn.conv.weight": torch.ones(3, 3)}}, tmp_path / "a.pth")
    report = load_weights(alike(networks[name]), tmp_path / "a.pth")
    assert report.share > 0.9
    assert not report.layers.gap


@pytest.mark.parametrize(
    ("saved", "network"),
    [
        (lambda: Vgg(in_chans=1), Vgg),
        (lambda: Vgg(num_classes=1000), Vgg),
        (Vgg, lambda: nn.ModuleDict({"net": Vgg(), "neck": nn.Linear(9, 9)})),
    ],
    ids=["other channels", "other classes", "a neck of the user's own"],
)
def test_files_that_lack_little_load(tmp_path: Path, saved, network) -> None:
    torch.save(without(saved().state_dict(), "num_batches_tracked"), tmp_path / "a.pth")
    assert load_weights(network(), tmp_path / "a.pth", head_name=None).share > 0.9


def test_a_file_of_a_network_less_deep_is_refused(tmp_path: Path) -> None:
    def deep(num_layers: int) -> nn.Sequential:
        thin = [nn.Conv2d(4, 4, 3) for _ in range(num_layers)]
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ModuleList(thin), nn.Linear(400, 400))

    torch.save(deep(4).state_dict(), tmp_path / "a.pth")
    with pytest.raises(ValueError, match="but only 6 of 10 layers, 5 of 9 convolutions"):
        load_weights(nn.Sequential(*deep(8), nn.Linear(400, 2)), tmp_path / "a.pth", head_name="3")

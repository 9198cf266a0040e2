"""A weights file has to fill the layers of a network, not only most of its numbers."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from lit_finetune.weights import load_weights

State = dict[str, Tensor]


class Vgg(nn.Module):
    """97 % of the backbone's parameters are in one hidden linear layer."""

    def __init__(self, width: int = 16, in_chans: int = 3, num_classes: int = 10) -> None:
        super().__init__()
        channels = [in_chans, width, 2 * width, 32]
        convolutions = [nn.Conv2d(a, b, 3, 2, 1) for a, b in pairwise(channels)]
        self.features = nn.Sequential(*convolutions)
        self.norm = nn.BatchNorm2d(32)
        self.classifier = nn.Sequential(
            nn.Linear(512, 2048), nn.ReLU(), nn.Linear(2048, num_classes)
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


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("resnet18", ("running_",)),  # all weights, and features that no picture ever had
        ("resnet18", ("bn1", "bn2", "downsample.1")),
        ("convnext_tiny", ("block.0.",)),  # the depthwise convolutions: 1 % of the numbers
        ("mobilenet_v2", ("conv.1.0.weight",)),
        ("vit", ("conv_proj",)),  # every picture passes it
    ],
)
@pytest.mark.slow
def test_layers_of_a_kind_that_are_missing_are_refused(
    tmp_path: Path, name: str, parts: tuple[str, ...]
) -> None:
    network = small_vit() if name == "vit" else torchvision.models.get_model(name)
    torch.save(without(network.state_dict(), *parts), tmp_path / "a.pth")
    with pytest.raises(ValueError, match="the network was left as it is"):
        load_weights(network, tmp_path / "a.pth")
    torch.save(network.state_dict(), tmp_path / "a.pth")
    assert load_weights(network, tmp_path / "a.pth").share == 1


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

"""Pictures of other channels, and of another size: networks, weights files and data follow."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.hf_families import TINY_CONFIGS
from lit_finetune import FinetuneClassifier
from lit_finetune.backbones.adapted import create_adapted
from lit_finetune.backbones.input_adaptation import (
    adapt_channel_weights,
    adapt_channels,
    input_layer,
)
from lit_finetune.datamodules import DigitsDataModule, ImageFolderDataModule
from lit_finetune.images.data_config import DataConfig, eval_transform
from lit_finetune.weights.load import load_weights


class Net(nn.Module):
    """A user's own network."""

    def __init__(self, in_chans: int = 3, num_classes: int = 2) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(in_chans, 4, 3), nn.BatchNorm2d(4)
        self.layer1, self.fc = nn.Conv2d(4, 8, 3), nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer1(self.bn(self.conv(x)).relu()).mean((2, 3)))


def fit(model: FinetuneClassifier, data: Any, **options: Any) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "accelerator": "cpu", "max_epochs": 1}
    trainer = Trainer(**{**quiet, **options})
    trainer.fit(model, data)
    return trainer


@pytest.mark.parametrize("in_chans", [1, 2, 3, 4, 6, 12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_convolution_is_adapted_as_in_timm(in_chans: int, dtype: torch.dtype) -> None:
    timm = pytest.importorskip("timm.models._manipulate")
    weight = torch.randn(4, 3, 5, 5).to(dtype)
    wanted = timm.adapt_input_conv(in_chans, weight.clone())
    assert adapt_channel_weights(weight, in_chans).equal(wanted)


def test_a_grey_picture_looks_the_same_to_one_channel_and_to_three() -> None:
    colour, grey = Net(), Net(1)
    grey.load_state_dict({**colour.state_dict(), "conv.weight": torch.zeros(4, 1, 3, 3)})
    grey.conv.weight = nn.Parameter(adapt_channel_weights(colour.conv.weight.detach(), 1))
    picture = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(grey(picture), colour(picture.expand(-1, 3, -1, -1)))


NAMES = ["squeezenet1_1", "mobilenet_v3_small", "timm/test_resnet", "timm/test_vit"]


@pytest.mark.parametrize("in_chans", [1, 4])
@pytest.mark.parametrize("name", NAMES)
def test_a_named_network_takes_other_channels(name: str, in_chans: int) -> None:
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    built = create_adapted(name, in_chans=in_chans)
    size = built.data_config.image_size
    found = input_layer(built.network)
    assert found is not None
    assert found[1].in_channels == in_chans
    assert len(built.data_config.mean) == len(built.data_config.std) == in_chans
    assert built.network.eval()(torch.rand(1, in_chans, *size)).shape == (1, 1000)


def test_inception_leaves_its_own_statistics_out() -> None:
    built = create_adapted("googlenet", in_chans=1, backbone_kwargs={"init_weights": False})
    assert built.data_config.mean == built.data_config.std == (0.5,)
    assert built.network.eval()(torch.rand(1, 1, 64, 64)).shape == (1, 1000)


def test_weights_stay_trainable_and_modules_note_the_channels() -> None:
    network = nn.Module()
    network.patches = Net()
    network.patches.num_channels = 3
    network.patches.conv.requires_grad_(False)
    adapt_channels(network, 5)
    assert network.patches.num_channels == 5
    assert not network.patches.conv.weight.requires_grad


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.Linear(4, 2)), "no convolution that"),
        (nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.Linear(3, 2)), "`0`, cannot be adapted"),
        (
            nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))),
            "`0`, cannot be adapted",
        ),
    ],
)
def test_what_cannot_be_adapted_is_refused(network: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=f"`in_chans` is 1, but .*{message}"):
        adapt_channels(network, 1)


def test_a_network_that_wants_its_channels_is_refused_at_the_start() -> None:
    class Picky(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x[:, [2, 1, 0]])

    with pytest.raises(
        ValueError, match=r"Picky had to be run .*`in_chans`.* shape \(1, 224, 224\)"
    ):
        FinetuneClassifier(Picky(), num_classes=2, in_chans=1)


@pytest.mark.parametrize(("old", "new"), [(3, 1), (3, 4), (3, 12), (1, 3)])
def test_a_file_for_other_channels_fills_the_network(tmp_path: Path, old: int, new: int) -> None:
    saved, network = Net(old), Net(new)
    torch.save({"state_dict": saved.state_dict()}, tmp_path / "a.pth")
    report = load_weights(network, tmp_path / "a.pth")
    assert (report.share, report.adapted) == (1.0, ("conv.weight",))
    assert network.conv.weight.equal(adapt_channel_weights(saved.conv.weight.detach(), new))
    assert network.layer1.weight.equal(saved.layer1.weight)
    assert "adapted      1: conv.weight" in str(report)


def test_a_first_convolution_of_another_kernel_is_not_adapted(tmp_path: Path) -> None:
    saved = Net()
    saved.conv = nn.Conv2d(1, 4, 5)
    torch.save(saved.state_dict(), tmp_path / "a.pth")
    report = load_weights(Net(), tmp_path / "a.pth", min_match=0.5)
    assert (report.adapted, report.mismatched[0][0]) == ((), "conv.weight")


def test_timms_weights_for_three_channels_go_into_its_network_for_one(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "a.pth")
    path = str(tmp_path / "a.pth")
    model = FinetuneClassifier("timm/test_resnet", num_classes=2, in_chans=1, weights=path)
    wanted = timm.create_model(
        "test_resnet", in_chans=1, pretrained=True, pretrained_cfg_overlay={"file": path}
    )
    assert model.backbone.conv1[0].weight.equal(wanted.conv1[0].weight)


@pytest.mark.parametrize("in_chans", [4, 12])
def test_a_loader_of_many_channels_trains(in_chans: int) -> None:
    images, labels = torch.rand(16, in_chans, 8, 8), torch.arange(16) % 2
    images[labels == 1, -1] += 2.0  # what tells the classes apart is in the last channel alone
    data = DataLoader(TensorDataset(images, labels), batch_size=4)
    model = FinetuneClassifier(
        Net(), num_classes=2, in_chans=in_chans, lr=0.02, backbone_lr_ratio=1.0
    )
    trainer = fit(model, data, max_epochs=12)
    assert trainer.callback_metrics["train/acc"] == 1.0
    assert model.predict_step(images[:3], 0).shape == (3, 2)
    with pytest.raises(ValueError, match=f"takes {in_chans} channels, but pictures have 3"):
        model.predict_image(Image.new("RGB", (8, 8)))


def test_pictures_become_grey_for_a_network_of_one_channel() -> None:
    model = FinetuneClassifier(Net(), num_classes=10, in_chans=1, image_size=8)
    data = DigitsDataModule(batch_size=64)
    fit(model, data, limit_train_batches=2, limit_val_batches=1)
    images, _ = next(iter(data.val_dataloader()))
    assert images.shape == (64, 1, 8, 8)
    assert sum(model.predict_image(Image.new("RGB", (8, 8))).values()) == pytest.approx(1)


def test_a_users_network_for_grey_pictures_gets_them() -> None:
    model = FinetuneClassifier(Net(in_chans=1), num_classes=10)
    assert len(model.data_config.mean) == 1
    fit(model, DigitsDataModule(image_size=8), limit_train_batches=1, limit_val_batches=1)


def test_a_folder_of_pictures_follows_channels_and_size(tmp_path: Path) -> None:
    for name, shade in (("dark", 40), ("light", 220)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(4):
            pixels = np.full((20, 24, 3), shade + i, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    data = ImageFolderDataModule(tmp_path / "photos", batch_size=2, num_workers=0, val_split=0.5)
    model = FinetuneClassifier(Net(), num_classes=2, in_chans=1, image_size=16)
    fit(model, data)
    images, _ = next(iter(data.train_dataloader()))
    assert images.shape == (2, 1, 16, 16)
    assert model.data_config.image_size == (16, 16)


def test_one_number_stands_for_all_channels_and_others_are_counted() -> None:
    model = FinetuneClassifier(Net(), num_classes=10, in_chans=1, image_size=8)
    options = {"limit_train_batches": 1, "limit_val_batches": 1}
    data = DigitsDataModule(mean=0.5, std=0.25)
    fit(model, data, **options)
    assert (data.data_config.mean, data.data_config.std) == ((0.5,), (0.25,))
    with pytest.raises(ValueError, match=r"`mean` has 3 channels.*the network takes 1"):
        fit(model, DigitsDataModule(mean=(0.5, 0.5, 0.5), std=0.5), **options)


def test_the_average_of_the_channels_is_that_of_grey() -> None:
    config = DataConfig(mean=(0.2, 0.4, 0.6), std=(0.1, 0.2, 0.3)).with_channels(1)
    assert (config.mean, config.std) == ((pytest.approx(0.4),), (pytest.approx(0.2),))
    assert eval_transform(config)(Image.new("RGB", (300, 300))).shape == (1, 224, 224)


def vit(image_size: int = 32, **options: Any) -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(
        image_size=image_size, patch_size=8, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16
    )


def test_torchvisions_transformer_takes_another_size() -> None:
    timm = pytest.importorskip("timm.layers.pos_embed")
    network = vit()
    before = network.encoder.pos_embedding.detach().clone()
    model = FinetuneClassifier(network, num_classes=2, image_size=48)
    wanted = timm.resample_abs_pos_embed(before, [6, 6], num_prefix_tokens=1)
    assert model.backbone.encoder.pos_embedding.equal(wanted)
    assert model(torch.rand(2, 3, 48, 48)).shape == (2, 2)
    assert model.data_config.image_size == (48, 48)


def test_a_size_that_patches_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="cuts pictures into patches of 8: choose a multiple"):
        FinetuneClassifier(vit(), num_classes=2, image_size=50)


@pytest.mark.parametrize("image_size", [96, 256])
@pytest.mark.parametrize("name", ["squeezenet1_1", "timm/test_resnet", "timm/test_vit"])
def test_a_named_network_takes_another_size(name: str, image_size: int) -> None:
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    built = create_adapted(name, image_size=image_size)
    assert built.data_config.image_size == (image_size, image_size)
    assert built.network.eval()(torch.rand(1, 3, image_size, image_size)).shape == (1, 1000)


@pytest.mark.long
@pytest.mark.parametrize(("name", "size"), [("maxvit_t", 448), ("swin_t", 256), ("vit_b_32", 256)])
def test_torchvisions_transformers_take_another_size(name: str, size: int) -> None:
    built = create_adapted(name, image_size=size)
    assert built.data_config.image_size == (size, size)
    assert built.network.eval()(torch.rand(1, 3, size, size)).shape == (1, 1000)


def test_a_network_that_cannot_take_the_size_is_refused_at_the_start() -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 8, stride=8), nn.Flatten(), nn.Linear(32, 2))
    FinetuneClassifier(network, num_classes=2, image_size=32)
    with pytest.raises(ValueError, match=r"does not run on pictures of shape \(3, 64, 64\)"):
        FinetuneClassifier(network, num_classes=2, image_size=64)


@pytest.mark.parametrize("file", ["torchvision", "timm"])
def test_a_file_made_at_one_size_goes_into_a_network_of_another(tmp_path: Path, file: str) -> None:
    timm = pytest.importorskip("timm")
    if file == "timm":
        saved = timm.create_model("test_vit", img_size=64)
        network, name = timm.create_model("test_vit", img_size=96), "pos_embed"
        torch.save(saved.state_dict(), tmp_path / "a.pth")
        file_of = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(tmp_path / "a.pth")}}
        wanted = timm.create_model("test_vit", img_size=96, **file_of).state_dict()
    else:
        saved, network, name = vit(32), vit(48), "encoder.pos_embedding"
        torch.save(saved.state_dict(), tmp_path / "a.pth")
        wanted = saved.state_dict()
        wanted[name] = timm.layers.resample_abs_pos_embed(wanted[name], [6, 6])
    report = load_weights(network, tmp_path / "a.pth")
    assert (report.share, report.adapted, report.missing) == (1.0, (name,), ())
    state = network.state_dict()
    assert all(value.equal(state[name]) for name, value in wanted.items())


@pytest.mark.parametrize("kind", ["vit", "siglip_vision_model", "swin", "resnet"])
@pytest.mark.parametrize("option", ["in_chans", "image_size"])
def test_networks_of_hugging_face_take_other_pictures(kind: str, option: str) -> None:
    pytest.importorskip("transformers")
    options: dict[str, Any] = {"num_classes": 2, "backbone_kwargs": TINY_CONFIGS[kind]}
    size = FinetuneClassifier(f"hf/{kind}", **options).data_config.image_size[0]
    value = 1 if option == "in_chans" else 2 * size
    model = FinetuneClassifier(f"hf/{kind}", **options, **{option: value})
    shape = (1, size, size) if option == "in_chans" else (3, 2 * size, 2 * size)
    assert model(torch.rand(2, *shape)).shape == (2, 2)
    config = model.data_config
    assert (len(config.mean), *config.image_size) == shape


def test_a_file_of_hugging_face_made_at_one_size_goes_into_another(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    kwargs = {**TINY_CONFIGS["vit"], "image_size": 32, "patch_size": 8}
    saved = create_adapted("hf/vit", backbone_kwargs=kwargs).network
    network = create_adapted("hf/vit", backbone_kwargs={**kwargs, "image_size": 48}).network
    torch.save(saved.state_dict(), tmp_path / "a.pth")
    report = load_weights(network, tmp_path / "a.pth")
    assert report.adapted == ("vit.embeddings.position_embeddings",)
    assert report.share == 1.0


def test_positions_that_cannot_be_resampled_are_refused(tmp_path: Path) -> None:
    saved, network = vit(32), vit(48)
    without = saved.encoder.pos_embedding.detach()[:, 1:]
    state = {**saved.state_dict(), "encoder.pos_embedding": without}
    torch.save(state, tmp_path / "a.pth")
    before = network.conv_proj.weight.clone()
    with pytest.raises(ValueError, match=r"(?s)a\.pth has position .*: encoder\.pos_embedding"):
        load_weights(network, tmp_path / "a.pth")
    assert network.conv_proj.weight.equal(before)


def test_a_checkpoint_brings_channels_and_size_back(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    model = FinetuneClassifier("timm/test_vit", num_classes=2, in_chans=4, image_size=48)
    images = torch.rand(8, 4, 48, 48)
    data = DataLoader(TensorDataset(images, torch.arange(8) % 2), batch_size=4)
    fit(model, data).save_checkpoint(tmp_path / "a.ckpt")
    again = FinetuneClassifier.load_from_checkpoint(tmp_path / "a.ckpt")
    assert again.eval()(images).equal(model.eval()(images))
    assert again.data_config == model.data_config


@pytest.mark.parametrize("argument", ["in_chans", "image_size"])
def test_a_number_below_one_is_refused(argument: str) -> None:
    with pytest.raises(ValueError, match=f"`{argument}` is a number of"):
        FinetuneClassifier(Net(), num_classes=2, **{argument: 0})

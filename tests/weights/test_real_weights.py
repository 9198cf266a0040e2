"""Files as people left them, where there are some."""

import pytest
import torchvision
from torch import nn

from lit_finetune.weights.load import load_weights, read_state_dict


@pytest.mark.parametrize(
    ("file", "num_classes", "dropped"),
    [
        ("squeezenet1_1-imagenet.safetensors", 1000, 0),
        ("squeezenet1_1-imagenet.safetensors", 2, 2),
        ("kinds/zip_statedict_torchvision_squeezenet1_1_10cls.pth", 10, 0),
        ("kinds/zip_statedict_torchvision_squeezenet1_1_10cls.pth", 2, 2),
    ],
)
def test_squeezenet_files_fill_the_backbone(data_root, file, num_classes, dropped):
    network = torchvision.models.squeezenet1_1(num_classes=num_classes)
    report = load_weights(network, data_root / "weights" / file)
    assert report.share == 1.0
    assert (len(report.matched), len(report.head_dropped)) == (52 - dropped, dropped)


def test_a_timm_network_is_filled_but_for_its_head(data_root):
    timm = pytest.importorskip("timm")
    network = timm.create_model("mobilenetv2_035", num_classes=2)
    path = data_root / "weights/mobilenetv2_035-imagenet-notop.safetensors"
    report = load_weights(network, path)
    assert (report.share, report.missing) == (1.0, ("classifier.weight", "classifier.bias"))


def test_another_architecture_is_refused_with_its_share(data_root):
    network = torchvision.models.resnet18()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(ValueError, match=r"squeezenet1_1-imagenet.safetensors fits 0\.0%"):
        load_weights(network, data_root / "weights/squeezenet1_1-imagenet.safetensors")
    assert all(tensor.equal(before[name]) for name, tensor in network.state_dict().items())


def small_resnet_block(width: int, out: int) -> nn.ModuleDict:
    conv1, conv2 = nn.Conv2d(width, out, 3, bias=False), nn.Conv2d(out, out, 3, bias=False)
    norms = {"bn1": nn.BatchNorm2d(out), "bn2": nn.BatchNorm2d(out)}
    return nn.ModuleDict({"conv1": conv1, "conv2": conv2, **norms})


def cifar_resnet(num_blocks: int) -> nn.Module:
    """The parameters of a ResNet for CIFAR-10, without its forward."""
    network = nn.ModuleDict({"conv1": nn.Conv2d(3, 16, 3, bias=False), "bn1": nn.BatchNorm2d(16)})
    for stage, (width, out) in enumerate([(16, 16), (16, 32), (32, 64)], start=1):
        blocks = [small_resnet_block(width if i == 0 else out, out) for i in range(num_blocks)]
        network[f"layer{stage}"] = nn.Sequential(*blocks)
    network["linear"] = nn.Linear(64, 10)
    return network


@pytest.mark.parametrize(
    ("file", "num_blocks"), [("resnet20-12fca82f.th", 3), ("resnet56-4bfd9763.th", 9)]
)
def test_legacy_files_from_data_parallel_fill_a_users_own_network(data_root, file, num_blocks):
    report = load_weights(cifar_resnet(num_blocks), data_root / "weights" / file)
    assert (report.entry, report.stripped, report.share) == ("state_dict", "module.", 1.0)
    assert not report.missing + report.unexpected


@pytest.mark.parametrize("kind", ["torchscript_fp32_vgg_cifar10.pt", "UNSAFE_whole_module"])
def test_programs_are_refused_with_what_to_do_instead(data_root, kind):
    path = next((data_root / "weights/kinds").glob(f"{kind}*"))
    with pytest.raises(ValueError, match=r"state_dict\(\), \"weights\.pth\""):
        read_state_dict(path)


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        ("legacy_net_module-prefix_resnet20_cifar10.t7", 107),
        ("lightning2.0_model-prefix_lenet_mnist.ckpt", 18),
        ("safetensors_mnist_cnn_bn.safetensors", 20),
        ("zip_net_resnet20_cifar10_92.92.pth", 116),
        ("zip_state_dict_weightnorm_g_v.pth.tar", 8),
    ],
)
def test_every_kind_of_file_is_read(data_root, kind, count):
    assert len(read_state_dict(data_root / "weights/kinds" / kind)) == count

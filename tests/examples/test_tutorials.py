"""The tutorials' systems: what is frozen stays as it is in the weights file, bit for bit."""

from importlib import import_module
from pathlib import Path

import pytest
import torch
from jsonargparse import auto_cli
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50

from examples import (
    first_children_frozen,
    handwritten_resnet50,
    resnet18_cifar100,
    resnet18_new_head,
    resnet18_three_classes,
    ten_lines,
)
from examples.resnet50 import ResNet50

FIRST_SIX = ("conv1.", "bn1.", "layer1.", "layer2.")


def save(network: nn.Module, path: Path) -> dict[str, Tensor]:
    """Write the weights file of a "pretrained" network; return what it holds."""
    torch.save(network.state_dict(), path)
    return torch.load(path, weights_only=True)


def moved(trainer: Trainer, before: dict[str, Tensor]) -> set[str]:
    """The parameters and the buffers of the trained network that are not as they were."""
    after = trainer.lightning_module.backbone.state_dict()
    assert after.keys() == before.keys()
    return {name for name in after if not torch.equal(after[name], before[name])}


def in_optimizer(trainer: Trainer) -> set[str]:
    """The network's parameters that the only optimizer holds."""
    (optimizer,) = trainer.optimizers
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    named = trainer.lightning_module.backbone.named_parameters()
    return {name for name, parameter in named if id(parameter) in held}


def trainable(trainer: Trainer) -> set[str]:
    named = trainer.lightning_module.backbone.named_parameters()
    return {name for name, parameter in named if parameter.requires_grad}


def test_of_the_handwritten_network_only_fc_trains(tmp_path):
    before = save(ResNet50(num_classes=2, width=8), tmp_path / "net.pth")

    trainer = handwritten_resnet50.main(weights=str(tmp_path / "net.pth"), epochs=1)

    fc = {"fc.linear.weight", "fc.linear.bias"}
    assert moved(trainer, before) == fc
    assert trainable(trainer) == in_optimizer(trainer) == fc
    assert type(trainer.optimizers[0]) is torch.optim.SGD


def test_a_file_of_other_classes_fills_the_handwritten_network_but_for_its_head():
    trainer = handwritten_resnet50.main(epochs=1)

    model = trainer.lightning_module
    file = torch.load("data/resnet50_width8.pth", weights_only=True)
    after = model.backbone.state_dict()
    assert model.load_report.share == 1.0
    assert set(model.load_report.head_dropped) == {"fc.linear.weight", "fc.linear.bias"}
    assert all(torch.equal(after[name], file[name]) for name in after if "fc." not in name)
    assert after["fc.linear.weight"].shape == (2, 256)


@pytest.mark.slow
def test_the_handwritten_network_computes_what_that_of_torchvision_does():
    ours, theirs = ResNet50().eval(), resnet50().eval()

    result = ours.load_state_dict(theirs.state_dict(), strict=False)

    assert result.missing_keys == ["fc.linear.weight", "fc.linear.bias"]
    assert result.unexpected_keys == ["fc.weight", "fc.bias"]
    ours.fc, theirs.fc = nn.Identity(), nn.Identity()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))


@pytest.mark.slow
def test_the_first_six_children_are_frozen_and_all_others_train(tmp_path):
    before = save(resnet50(num_classes=2), tmp_path / "net.pth")

    trainer = first_children_frozen.main(weights=str(tmp_path / "net.pth"))

    others = {name for name in before if not name.startswith(FIRST_SIX)}
    parameters = dict(trainer.lightning_module.backbone.named_parameters())
    assert moved(trainer, before) == others
    assert trainable(trainer) == in_optimizer(trainer) == others & parameters.keys()


@pytest.mark.slow
def test_of_resnet18_only_the_new_head_trains(tmp_path):
    before = save(resnet18(num_classes=10), tmp_path / "net.pth")

    trainer = resnet18_new_head.main(weights=str(tmp_path / "net.pth"), epochs=1)

    fc = {"fc.weight", "fc.bias"}
    assert trainer.lightning_module.backbone.fc.out_features == 10
    assert moved(trainer, before) == fc
    assert trainable(trainer) == in_optimizer(trainer) == fc


@pytest.mark.slow
@pytest.mark.parametrize("train", ["head", "layer4", "layer4,head"])
def test_of_resnet18_for_three_classes_only_the_chosen_part_trains(tmp_path, train):
    before = save(resnet18(num_classes=3), tmp_path / "net.pth")

    trainer = resnet18_three_classes.main(train=train, weights=str(tmp_path / "net.pth"), epochs=1)

    chosen = tuple(f"{name}.".replace("head", "fc") for name in train.split(","))
    expected = {name for name in before if name.startswith(chosen)}
    parameters = dict(trainer.lightning_module.backbone.named_parameters())
    (optimizer,) = trainer.optimizers
    assert moved(trainer, before) == expected
    assert trainable(trainer) == in_optimizer(trainer) == expected & parameters.keys()
    assert type(optimizer) is torch.optim.Adam
    assert {group["initial_lr"] for group in optimizer.param_groups} == {0.001}


@pytest.mark.slow
def test_all_of_resnet18_trains_by_sgd_at_one_constant_rate(tmp_path):
    before = save(resnet18(num_classes=100), tmp_path / "net.pth")

    trainer = resnet18_cifar100.main(weights=str(tmp_path / "net.pth"))

    (optimizer,) = trainer.optimizers
    rates = {(g["lr"], g["momentum"], g["weight_decay"]) for g in optimizer.param_groups}
    assert moved(trainer, before) == before.keys()
    assert (
        in_optimizer(trainer) == dict(trainer.lightning_module.backbone.named_parameters()).keys()
    )
    assert type(optimizer) is torch.optim.SGD
    assert rates == {(0.001, 0.9, 0.0)}
    assert trainer.lr_scheduler_configs == []
    config = trainer.lightning_module.data_config
    assert config.mean == config.std == (0.5, 0.5, 0.5)


def test_the_running_loss_is_the_mean_of_the_last_steps(capsys):
    watch = resnet18_cifar100.PrintRunningLoss(every=2)
    trainer, module = Trainer(logger=False, enable_checkpointing=False), object()
    watch.on_train_epoch_start(trainer, module)

    for step, loss in enumerate([1.0, 2.0, 3.0, 5.0, 9.0]):
        watch.on_train_batch_end(trainer, module, {"loss": torch.tensor(loss)}, None, step)

    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert [line.rsplit(",", 1)[0] for line in lines] == [
        "epoch 0, step 2: loss 1.500",
        "epoch 0, step 4: loss 4.000",
    ]


@pytest.mark.slow
def test_ten_lines_give_a_classifier_that_names_what_it_sees(capsys):
    model = ten_lines.main(epochs=2)

    told = capsys.readouterr().out
    assert model.classes == ["hexagon_02", "square_01", "triangle_00"]
    assert all(name in told for name in model.classes)


@pytest.mark.parametrize(
    "name",
    [
        "first_children_frozen",
        "handwritten_resnet50",
        "resnet18_cifar100",
        "resnet18_new_head",
        "resnet18_three_classes",
        "ten_lines",
        "toy_net_freeze_fc2",
    ],
)
def test_every_example_tells_its_arguments(name, capsys):
    main = import_module(f"examples.{name}").main

    with pytest.raises(SystemExit) as end:
        auto_cli(main, as_positional=False, args=["--help"])

    assert end.value.code == 0
    assert main.__doc__.splitlines()[0] in " ".join(capsys.readouterr().out.split())

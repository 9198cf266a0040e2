"""The tutorials' systems from the command line: each configuration trains for a step."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR100

from examples.demo_data import draw_shapes
from examples.resnet50 import ResNet50
from lit_finetune.cli.command_line import main

CONFIGS = Path(__file__).parents[2] / "configs"
ON_FOLDERS = ("first_children_frozen", "resnet18_new_head", "resnet18_three_classes")


def fit_a_step(name: str, *options: str) -> None:
    config = f"--config={CONFIGS / f'tutorial_{name}.yaml'}"
    main(args=["fit", config, "--trainer.fast_dev_run=true", "--data.num_workers=0", *options])


@pytest.fixture
def small_cifar100(tmp_path, monkeypatch) -> Path:
    """A folder of small files in the format of CIFAR-100, with their md5 sums as the right ones."""
    folder = tmp_path / CIFAR100.base_folder
    folder.mkdir()

    def put(name: str, content: object) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    labels = list(range(100)) * 2
    pictures = {"data": np.zeros((200, 3072), dtype=np.uint8), "fine_labels": labels}
    for files in ("train_list", "test_list"):
        listed = [[name, put(name, pictures)] for name, _ in getattr(CIFAR100, files)]
        monkeypatch.setattr(CIFAR100, files, listed)
    md5 = put(CIFAR100.meta["filename"], {CIFAR100.meta["key"]: [str(i) for i in range(100)]})
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": md5})
    return tmp_path


def test_every_configuration_of_a_tutorial_is_tried_here():
    names = {path.stem.removeprefix("tutorial_") for path in CONFIGS.glob("tutorial_*.yaml")}

    assert names == {*ON_FOLDERS, "handwritten_resnet50", "resnet18_cifar100"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_FOLDERS)
def test_a_configuration_for_folders_trains(name):
    folder = draw_shapes(num_classes=3)

    fit_a_step(name, "--model.weights=null", f"--data.data_dir={folder}", "--data.image_size=32")


@pytest.mark.slow
def test_the_configuration_of_the_handwritten_network_trains(tmp_path):
    torch.save(ResNet50(width=8).state_dict(), tmp_path / "net.pth")
    folder = draw_shapes(num_classes=2)

    fit_a_step(
        "handwritten_resnet50",
        f"--model.weights={tmp_path / 'net.pth'}",
        "--model.backbone_kwargs={width: 8}",
        f"--data.data_dir={folder}",
        "--data.image_size=32",
    )


@pytest.mark.slow
def test_the_configuration_for_cifar100_trains(small_cifar100):
    fit_a_step(
        "resnet18_cifar100",
        "--model.weights=null",
        f"--data.data_dir={small_cifar100}",
        "--data.val_split=0.5",
        "--data.batch_size=2",
    )

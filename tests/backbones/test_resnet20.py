"""ResNet-20, a user's own file, with the weights that someone else published for it."""

import re
import zipfile
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from examples.resnet20 import ResidualBlock, ResNet20
from lit_finetune import FinetuneClassifier, list_blocks
from lit_finetune.cli.command_line import main
from lit_finetune.datamodules import ImageFolderDataModule

CONFIG = Path(__file__).parents[2] / "configs/cifar10_resnet20.yaml"
WEIGHTS = "weights/resnet20-12fca82f.th"


def unzip(archive: Path, folder: Path, *, per_class: int | None = None) -> Path:
    """Unpack pictures as `folder/<class>/NNNN.*`, all or the first ones of each class."""
    with zipfile.ZipFile(archive) as pictures:
        for name in pictures.namelist():
            path = Path(name)
            if path.suffix and "test" in path.parts and int(path.stem) < (per_class or 10_000):
                target = folder / path.parent.name / path.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(pictures.read(name))
    return folder


def test_a_shortcut_halves_the_picture_and_pads_with_channels_of_zeros():
    pictures = torch.rand(2, 16, 8, 8)

    out = ResidualBlock(16, 32).shortcut(pictures)

    assert out.shape == (2, 32, 4, 4)
    assert out[:, 8:24].equal(pictures[:, :, ::2, ::2])
    assert out[:, :8].abs().sum() == out[:, 24:].abs().sum() == 0


def test_it_has_the_size_of_the_paper_and_five_blocks():
    network = ResNet20()

    assert sum(p.numel() for p in network.parameters()) == 269_722
    assert [b.name for b in list_blocks(network)] == ["stem", "layer1", "layer2", "layer3", "head"]


@pytest.mark.slow
def test_the_published_weights_tell_the_first_pictures_apart(data_root, tmp_path):
    folder = unzip(data_root / "cifar10-png-test.zip", tmp_path / "png/val", per_class=50)
    (tmp_path / "png/train").symlink_to(folder)
    data = ImageFolderDataModule(
        tmp_path / "png", batch_size=100, num_workers=0, image_size=32, resize_size=32
    )
    model = FinetuneClassifier(ResNet20(), weights=str(data_root / WEIGHTS), num_classes=10)

    (results,) = Trainer(accelerator="cpu", logger=False).validate(model, data, verbose=False)

    assert results["val/acc"] == pytest.approx(0.914, abs=5e-4)


@pytest.mark.long
@pytest.mark.parametrize(
    ("archive", "accuracy"),
    [
        ("cifar10-jpg.zip", 0.8103),
        # Of these 500 are told apart above.
        pytest.param("cifar10-png-test.zip", 0.9173, marks=pytest.mark.sweep),
    ],
)
def test_without_training_it_is_as_good_as_it_was_published(
    data_root, tmp_path, capsys, archive, accuracy
):
    folder = unzip(data_root / archive, tmp_path / "cifar10/val")
    (tmp_path / "cifar10/train").symlink_to(folder)

    main(
        args=[
            "validate",
            f"--config={CONFIG}",
            f"--model.weights={data_root / WEIGHTS}",
            f"--data.data_dir={tmp_path / 'cifar10'}",
            "--trainer.logger=false",
        ]
    )

    (printed,) = re.findall(r"val/acc +│ +(\S+)", capsys.readouterr().out)
    assert float(printed) == pytest.approx(accuracy, abs=5e-5)

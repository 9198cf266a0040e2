import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from datamodules.samplers import even_batch_size
from datamodules.transforms.batch_augment import RandomHorizontalFlip
from lit_finetune.datamodules import (
    CIFARDataModule,
    DigitsDataModule,
    ImageDataModule,
    ImageFolderDataModule,
)
from lit_finetune.images.data_config import DataConfig, eval_transform

MODULES = [CIFARDataModule, DigitsDataModule, ImageFolderDataModule]


def to_red(picture: Image.Image) -> Image.Image:
    return Image.new("RGB", (50, 20), "red")


class SavesLabels(LightningModule):
    """Writes the labels that its process has seen."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.automatic_optimization = False  # a fork cannot go backward where autograd has threads
        self.folder = folder
        self.layer = nn.Linear(1, 1)
        self.labels: list[Tensor] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.labels.append(batch[1])
        return self.layer(torch.ones(1)).sum()

    def on_train_end(self) -> None:
        torch.save(torch.cat(self.labels), self.folder / f"rank{self.global_rank}.pt")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_options_win_over_the_model_and_the_model_over_the_default(trainer, network):
    network.data_config = DataConfig(mean=(0.1,) * 3, std=(0.2,) * 3, interpolation="bicubic")
    data = DigitsDataModule(digits=[0, 1], image_size=16, mean=0.5)
    trainer.validate(network, data, verbose=False)
    assert data.data_config == DataConfig(
        mean=(0.5,) * 3,
        std=(0.2,) * 3,
        image_size=(16, 16),
        resize_size=16,
        interpolation="bicubic",
    )


def test_without_a_model_the_pictures_are_those_of_imagenet_networks(tmp_path, make_pictures):
    make_pictures(tmp_path, ants=2, bees=2)
    assert ImageFolderDataModule(tmp_path).data_config == DataConfig()
    assert ImageFolderDataModule(tmp_path, image_size=112).data_config.resize_size == 128


def test_a_model_without_a_data_config_will_do(trainer):
    class Plain(LightningModule):
        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            return batch[0]

    data = DigitsDataModule(digits=[0, 1], image_size=8)
    assert trainer.predict(Plain(), data)[0].shape == (32, 3, 8, 8)


def test_validation_is_in_order_and_complete_and_training_is_shuffled():
    data = DigitsDataModule(digits=[0, 1], image_size=8)
    data.setup("fit")
    validation = torch.cat([labels for _, labels in data.val_dataloader()])
    training = torch.cat([labels for _, labels in data.train_dataloader()])
    assert validation.tolist() == data.read_samples("val").labels
    assert training.tolist() != data.read_samples("train").labels
    assert training.bincount().tolist() == list(data.class_counts.values())
    assert training.dtype == torch.int64


@pytest.mark.parametrize(
    ("count", "batch_size", "seen"),
    [(9, 4, 8), (10, 4, 10), (8, 4, 8), (3, 1, 3), (2, 4, 2)],
)
def test_only_a_training_batch_of_one_picture_is_left_out(
    tmp_path, make_pictures, count, batch_size, seen
):
    make_pictures(tmp_path, ants=count - 1, bees=1)
    data = ImageFolderDataModule(tmp_path, val_split=0, batch_size=batch_size, image_size=8)
    data.setup("fit")
    assert sum(len(labels) for _, labels in data.train_dataloader()) == seen


@pytest.mark.parametrize("augmentation", ["auto", "trivial", "rand", "none", to_red])
@pytest.mark.parametrize("make", [DigitsDataModule, ImageFolderDataModule], ids=["digits", "files"])
def test_every_augmentation_gives_pictures_of_the_right_size(
    tmp_path, make_pictures, make, augmentation
):
    make_pictures(tmp_path, ants=5, bees=5)
    options = {} if make is DigitsDataModule else {"data_dir": tmp_path}
    data = make(**options, image_size=(24, 16), train_augmentation=augmentation)
    data.setup("fit")
    pixels, _ = data.train_dataloader().dataset[0]
    assert pixels.shape == (3, 24, 16)
    assert pixels.dtype == torch.float32
    assert type(pixels) is torch.Tensor


def test_augmentation_varies_training_pictures_and_never_those_of_validation():
    data = DigitsDataModule(image_size=16)
    data.setup("fit")
    train, val = data.train_dataloader().dataset, data.val_dataloader().dataset
    assert not torch.equal(train[0][0], train[0][0])
    assert torch.equal(val[0][0], val[0][0])


def test_without_augmentation_training_is_transformed_as_validation_is():
    data = DigitsDataModule(image_size=16, train_augmentation="none")
    data.setup("fit")
    dataset = data.train_dataloader().dataset
    expected = eval_transform(data.data_config)(dataset.samples.load(3))
    assert torch.equal(dataset[3][0], expected)


def test_a_callable_replaces_the_augmentation_but_not_the_normalisation():
    data = DigitsDataModule(image_size=16, mean=0.5, std=0.5, train_augmentation=to_red)
    data.setup("fit")
    pixels, _ = data.train_dataloader().dataset[0]
    assert pixels.mean(dim=(1, 2)).tolist() == [1, -1, -1]


def test_digits_are_never_mirrored_and_photographs_are(tmp_path, make_pictures):
    make_pictures(tmp_path, ants=2, bees=2)
    photos, digits = ImageFolderDataModule(tmp_path), DigitsDataModule()
    flips = [
        [
            part
            for part in data.train_geometry(DataConfig())
            if isinstance(part, RandomHorizontalFlip)
        ]
        for data in (photos, digits)
    ]
    assert [len(found) for found in flips] == [1, 0]


def test_datasets_can_be_sent_to_workers_that_are_started_afresh():
    data = DigitsDataModule(image_size=16)
    data.setup("fit")
    dataset = pickle.loads(pickle.dumps(data.train_dataloader().dataset))
    assert dataset[0][0].shape == (3, 16, 16)


def test_workers_are_as_many_as_asked_for_and_live_on_between_epochs():
    data = DigitsDataModule(num_workers=2)
    data.setup("fit")
    assert data.train_dataloader().num_workers == 2
    assert data.train_dataloader().persistent_workers


def test_few_pictures_are_loaded_without_workers(tmp_path, make_pictures):
    make_pictures(tmp_path, ants=5, bees=5)
    data = ImageFolderDataModule(tmp_path)
    data.setup("fit")
    assert data.train_dataloader().num_workers == 0


@pytest.mark.parametrize("what", ["class_counts", "predict_names"])
def test_what_is_not_known_yet_says_when_it_will_be(what):
    with pytest.raises(RuntimeError, match="known after `setup"):
        getattr(DigitsDataModule(), what)


@pytest.mark.parametrize("size", [0, -3])
def test_an_impossible_batch_size_is_refused(size):
    with pytest.raises(ValueError, match=f"`batch_size` must be at least 1, but got {size}"):
        DigitsDataModule(batch_size=size)


def test_an_unknown_augmentation_names_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'trivial'"):
        DigitsDataModule(train_augmentation="trivail")


def test_own_data_takes_two_methods(trainer, network):
    class TwoColours(ImageDataModule):
        @property
        def classes(self):
            return ["black", "white"]

        def read_samples(self, part):
            return DigitsDataModule(digits=[0, 1]).read_samples(part)

    trainer.fit(network, TwoColours(image_size=16))
    assert network.shapes == {(3, 16, 16)}


@pytest.mark.parametrize("module", MODULES)
def test_every_option_is_in_the_help_with_its_type_and_a_sentence(module):
    parser = ArgumentParser()
    parser.add_class_arguments(module, "data")
    shown = re.findall(r"--data\.(\w+) [A-Z_]+\s+(\S+)", parser.format_help().split("options:")[1])
    assert {"batch_size", "mean", "seed", "val_split"} <= {option for option, _ in shown}
    assert [option for option, first_word in shown if not first_word[0].isupper()] == []


@pytest.mark.filterwarnings("ignore")  # newer releases of jsonargparse have a new name for it
def test_everything_can_be_given_in_yaml():
    parser = ArgumentParser()
    parser.add_class_arguments(DigitsDataModule, "data")
    config = parser.parse_string("""
        data:
          digits: [5, 6]
          image_size: [24, 16]
          mean: 0.5
          std: [0.5, 0.5, 0.25]
          num_workers: null
          train_augmentation:
            class_path: torchvision.transforms.v2.RandomCrop
            init_args: {size: [24, 16], padding: 4}
    """)
    data = parser.instantiate_classes(config).data
    assert data.data_config.std == (0.5, 0.5, 0.25)
    assert data.data_config.image_size == (24, 16)
    assert isinstance(data.train_augmentation, v2.RandomCrop)


def test_two_processes_see_the_same_split_and_together_every_picture(tmp_path, make_pictures):
    make_pictures(tmp_path / "photos", ants=10, bees=10)
    data = ImageFolderDataModule(tmp_path / "photos", image_size=8, batch_size=3, num_workers=0)
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp_fork",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(SavesLabels(tmp_path), data)
    seen = [torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1)]
    assert [len(labels) for labels in seen] == [8, 8]
    assert torch.cat(seen).bincount().tolist() == [8, 8]


@pytest.mark.parametrize("num_pictures", [0, 1, 3])
def test_fewer_pictures_than_processes_are_refused_and_never_waited_for(num_pictures: int) -> None:
    with pytest.raises(ValueError, match=rf"fewer pictures \({num_pictures}\) than processes"):
        even_batch_size(num_pictures, batch_size=4, num_replicas=4)

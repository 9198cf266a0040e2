"""A picture is varied in the same way in whichever batch, process or run it comes."""

import random
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.connectors import data_connector
from PIL import Image
from torch.utils.data import DataLoader, default_collate
from torchvision.transforms import v2

from datamodules.dataset import ImageDataset
from datamodules.samplers import EpochIndex, EpochSampler
from datamodules.transforms.pipeline import make_pipeline
from datamodules.transforms.presets import photo_geometry
from lit_finetune.datamodules import DigitsDataModule, ImageDataModule, ImageFolderDataModule
from lit_finetune.images.data_config import DataConfig, eval_geometry, eval_transform, normalize
from lit_finetune.loading.run_position import RunPosition

AUGMENTATIONS = ["auto", "trivial", "none", v2.RandomRotation(20)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Photographs of several sizes, in two classes."""
    root = tmp_path_factory.mktemp("photos")
    rng = random.Random(0)
    for name in ("ants", "bees"):
        (root / name).mkdir()
        for number in range(10):
            picture = Image.effect_noise((rng.randint(30, 90), rng.randint(30, 90)), 60)
            colours = [picture, picture.rotate(90, expand=False), picture.rotate(180)]
            Image.merge("RGB", colours).save(root / name / f"{number}.jpg")
    return root


def make(kind: str, photos: Path, **options) -> ImageDataModule:
    options = {"image_size": 24, "num_workers": 0, **options}
    if kind == "digits":
        data = DigitsDataModule(digits=[0, 1], val_split=0.9, **options)
    else:
        data = ImageFolderDataModule(photos, val_split=0.0, **options)
    data.setup("fit")
    return data


def seen(data: ImageDataModule, seed: int = 4) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.cat([images for images, _ in data.train_dataloader()])


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=str)
@pytest.mark.parametrize("kind", ["digits", "photos"])
def test_pictures_do_not_depend_on_the_size_of_the_batch_or_on_workers(kind, photos, augmentation):
    options = {"train_augmentation": augmentation}
    reference = seen(make(kind, photos, batch_size=4, **options))

    assert torch.equal(seen(make(kind, photos, batch_size=6, **options)), reference)
    assert torch.equal(seen(make(kind, photos, batch_size=4, num_workers=2, **options)), reference)
    assert augmentation == "none" or not torch.equal(
        seen(make(kind, photos, batch_size=4, **options), seed=5).sum(), reference.sum()
    )


@pytest.mark.parametrize("kind", ["digits", "photos"])
def test_pictures_do_not_depend_on_the_process_and_a_resumed_epoch_has_the_same(kind, photos):
    dataset = make(kind, photos).train_dataloader().dataset

    def epoch(ranks: int, rank: int, position: RunPosition) -> dict[EpochIndex, torch.Tensor]:
        sampler = EpochSampler(
            dataset, num_replicas=ranks, rank=rank, seed=7, batch_size=3, position=lambda: position
        )
        indices = list(sampler)
        images = [image for image, _ in dataset.__getitems__(indices)]
        return dict(zip(indices, images, strict=True))

    whole = epoch(1, 0, RunPosition(2, 0))
    for part in (
        epoch(2, 0, RunPosition(2, 0)),
        epoch(2, 1, RunPosition(2, 0)),
        epoch(1, 0, RunPosition(2, 2)),
    ):
        assert part.keys() <= whole.keys()
        assert all(torch.equal(whole[draw], part[draw]) for draw in part)
    assert len(part) == len(whole) - 6
    other = epoch(1, 0, RunPosition(3, 0))
    assert not {draw.seed for draw in other} & {draw.seed for draw in whole}


@pytest.mark.parametrize("kind", ["digits", "photos"])
def test_one_picture_is_what_it_is_in_a_batch(kind, photos):
    dataset = make(kind, photos).train_dataloader().dataset
    draws = [EpochIndex(3, 99), EpochIndex(0, 99), EpochIndex(7, 98)]
    batch = dataset.__getitems__(draws)

    for draw, (image, label) in zip(draws, batch, strict=True):
        alone, own_label = dataset[draw]
        assert torch.equal(alone, image)
        assert own_label == label == dataset.samples.labels[draw.image]


@pytest.mark.parametrize("kind", ["digits", "photos"])
def test_a_loader_of_someone_else_gets_the_same_pictures(kind, photos):
    data = make(kind, photos, train_augmentation="none")
    dataset = data.train_dataloader().dataset
    (images, labels), *_ = DataLoader(dataset, batch_size=4, collate_fn=default_collate)
    expected = [eval_transform(data.data_config)(dataset.samples.load(i)) for i in range(4)]

    assert torch.equal(images, torch.stack(expected))
    assert labels.tolist() == list(dataset.samples.labels[:4])


def test_a_callable_may_give_floats_or_whole_numbers(photos):
    class Sometimes:
        def __call__(self, picture: Image.Image) -> object:
            as_float = bool(torch.rand(()) < 0.5)
            return v2.functional.to_dtype(
                v2.functional.to_image(picture),
                torch.float32 if as_float else torch.uint8,
                scale=True,
            )

    images = seen(make("photos", photos, train_augmentation=Sometimes(), mean=0.0, std=1.0))
    assert images.dtype == torch.float32
    assert 0 <= images.min() < 0.1
    assert 0.5 < images.max() <= 1


def test_pictures_in_memory_take_no_workers(photos):
    assert make("digits", photos, num_workers=None).train_dataloader().num_workers == 0


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["digits", "photos"])
def test_on_a_gpu_the_loader_gives_the_same_pictures_there(kind, photos):
    class Sees(LightningModule):
        def predict_step(self, batch, batch_idx):
            assert {tensor.device.type for tensor in batch} == {self.device.type}
            return batch[0]

    options = {"accelerator": "gpu", "devices": 1, "logger": False}
    found = Trainer(**options).predict(Sees(), make(kind, photos))
    expected = Trainer(**{**options, "accelerator": "cpu"}).predict(Sees(), make(kind, photos))

    assert torch.equal(torch.cat(found).cpu(), torch.cat(expected))


@pytest.mark.parametrize("kind", ["digits", "photos"])
def test_the_training_pictures_can_be_had_as_they_are_in_validation(kind, photos):
    data = make(kind, photos, batch_size=7)
    samples = data.read_samples("train")
    expected = [
        eval_transform(data.data_config)(samples.load(i)) for i in range(len(samples.names))
    ]
    images, labels = (
        torch.cat(parts) for parts in zip(*data.plain_train_dataloader(), strict=True)
    )

    assert torch.equal(images, torch.stack(expected))
    assert labels.tolist() == list(samples.labels)


def test_a_network_for_one_channel_sees_grey_pictures(photos):
    samples = make("photos", photos).read_samples("train")
    config = DataConfig(mean=(0.5,), std=(0.25,), image_size=(24, 24), resize_size=28)
    geometry = eval_geometry(config)
    evaluated = ImageDataset(samples, make_pipeline(geometry, config))
    varied = ImageDataset(samples, make_pipeline(photo_geometry(config), config))

    expected = v2.Compose([*geometry, v2.Grayscale(), normalize(config)])(samples.load(3))
    assert torch.equal(evaluated[3][0], expected)
    assert varied[3][0].shape == (1, 24, 24)


def test_no_workers_are_advised_where_they_are_of_no_use(photos, trainer, network, monkeypatch):
    monkeypatch.setattr(data_connector, "suggested_max_num_workers", lambda _: 8)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        trainer.fit(network, ImageFolderDataModule(photos, val_split=0.5, num_workers=1))
        assert [warning for warning in told if "many workers" in str(warning.message)]
        told.clear()
        trainer.fit(network, DigitsDataModule(digits=[0, 1]))
    assert not [warning for warning in told if "many workers" in str(warning.message)]

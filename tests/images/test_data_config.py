import json
import math

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from lit_finetune.backbones.image_processor import processor_data_config
from lit_finetune.backbones.timm import data_config
from lit_finetune.datamodules import DigitsDataModule, ImageFolderDataModule
from lit_finetune.images.data_config import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    DataConfig,
    ResizeToCover,
    eval_transform,
)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(torch.randint(0, 256, (height, width, 3), dtype=torch.uint8).numpy())


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (333, 500), (224, 224), (31, 17)])
def test_evaluation_equals_the_tutorials_resize_crop_and_normalise(size):
    reference = v2.Compose(
        [
            v2.Resize(256),
            v2.CenterCrop(224),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    picture = noise(*size)
    assert torch.equal(eval_transform(DataConfig())(picture), reference(picture))


def test_a_config_survives_json_and_comes_back_equal():
    config = DataConfig(
        mean=(0.5,) * 3, std=(0.25,) * 3, image_size=(64, 32), resize_size=40, crop_mode="squash"
    )
    assert DataConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_an_unknown_entry_names_the_nearest():
    with pytest.raises(ValueError, match=r"'image_sise'.* Did you mean 'image_size'"):
        DataConfig.from_dict({"image_sise": [32, 32]})


def test_all_problems_of_a_config_are_told_together():
    with pytest.raises(ValueError, match=r"2 channels.*above 0.*`resize_size` 16 is smaller"):
        DataConfig(mean=(0.5, 0.5), std=(0.5, 0.5, 0.0), image_size=(32, 32), resize_size=16)


def test_an_unknown_interpolation_is_refused():
    with pytest.raises(ValueError, match="Did you mean 'bilinear'"):
        DataConfig(interpolation="bilinar")  # type: ignore[arg-type]


@pytest.mark.parametrize(("size", "expected"), [(112, (112, 112)), ((448, 224), (448, 224))])
def test_another_size_keeps_the_share_that_is_cut_off(size, expected):
    config = DataConfig().resized(size)
    assert config.image_size == expected
    assert config.resize_size / min(expected) == pytest.approx(256 / 224)


@pytest.mark.parametrize(
    ("crop_mode", "crop_pct"), [("center", 0.9), ("center", 1.15), ("squash", 0.9), ("border", 0.9)]
)
@pytest.mark.parametrize("of", [(500, 375), (375, 500), (31, 17), (224, 224)])
def test_evaluation_is_timms_own_in_each_way_of_cropping(crop_mode, crop_pct, of):
    timm = pytest.importorskip("timm")
    picture = noise(*of)
    own = {
        "input_size": (3, 96, 96),
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.25, 0.3),
        "interpolation": "bicubic",
        "crop_pct": crop_pct,
        "crop_mode": crop_mode,
    }
    reference = timm.data.create_transform(**own)
    pixels = eval_transform(data_config(own))(picture)
    assert torch.allclose(pixels, reference(picture), atol=1e-6)


def test_a_border_has_the_colour_of_the_mean_for_floats_too():
    config = DataConfig(image_size=(8, 8), resize_size=8, crop_mode="border")
    pixels = eval_transform(config)(torch.ones(3, 4, 8))
    assert pixels[:, :2].abs().max() < 1e-6
    assert (pixels[:, 2:6] > 2).all()


@pytest.mark.parametrize("image_size", [(64, 32), (32, 64), (64, 64)])
@pytest.mark.parametrize("of", [(20, 50), (50, 20), (40, 40)])
def test_a_white_picture_of_any_shape_leaves_no_black_margin(image_size, of):
    config = DataConfig(image_size=image_size, resize_size=72)
    pixels = eval_transform(config)(Image.new("RGB", of, "white"))
    assert pixels.shape == (3, *image_size)
    assert (pixels > 2).all()


def test_tensors_are_transformed_as_pictures_are():
    config = DataConfig(image_size=(16, 16), resize_size=16)
    picture = noise(16, 16)
    tensor = v2.functional.pil_to_tensor(picture)
    assert torch.equal(eval_transform(config)(tensor), eval_transform(config)(picture))


TIMM = {
    "input_size": (3, 96, 96),
    "crop_pct": 0.9,
    "crop_mode": "center",
    "interpolation": "bicubic",
}
WRONG = {
    "mean of 0 to 255": ({"mean": (123.675, 116.28, 103.53)}, r"by 255, \(0.485, 0.456, 0.406\)"),
    "std of 0 to 255": ({"std": (58.395, 57.12, 57.375)}, r"by 255, \(0.229, 0.224, 0.225\)"),
    "mean of nan": ({"mean": (math.nan, 0.5, 0.5)}, "`mean` must be finite"),
    "mean of infinity": ({"mean": (0.5, math.inf, 0.5)}, "`mean` must be finite"),
    "text": ({"mean": ("0.5", "0.5", "0.5")}, "`mean` must be finite"),
    "below": ({"mean": (-123.0, 0.5, 0.5)}, "`mean` is of pixels from 0 to 1"),
    "std of 0": ({"std": (0.5, 0.0, 0.5)}, "`std` must be above 0"),
    "negative std": ({"std": (0.5, -0.5, 0.5)}, "`std` must be above 0"),
    "std of nan": ({"std": (0.5, math.nan, 0.5)}, "`std` must be finite"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_statistics_that_cannot_be_are_refused_from_wherever_they_come(kind):
    values, words = WRONG[kind]
    both = {"mean": (0.5,) * 3, "std": (0.5,) * 3} | values
    processor = {f"image_{name}": list(each) for name, each in both.items()}
    places = [
        lambda: DataConfig(**both),
        lambda: DataConfig.from_checkpoint({name: list(each) for name, each in both.items()}),
        lambda: data_config({**TIMM, **both}),
        lambda: ImageFolderDataModule("nowhere", **both),
        lambda: DigitsDataModule(**both),
        *([] if kind == "text" else [lambda: processor_data_config(processor)]),
    ]
    for place in places:
        with pytest.raises(ValueError, match=words):
            place()


@pytest.mark.parametrize(
    "statistics", [((0.0,), (1.0,)), ((0.0,), (1 / 255,)), ((0.485 / 255,), (0.229 / 255,))]
)
def test_whatever_published_networks_expect_is_let_in(statistics):
    mean, std = statistics
    assert DataConfig(mean=mean, std=std).mean == mean


@pytest.mark.parametrize("size", [(60_000, 1), (1, 60_000)])
def test_a_strip_of_pixels_takes_no_gigabytes(size: tuple[int, int]) -> None:
    resized = ResizeToCover((224, 224), interpolation="bilinear")(Image.new("RGB", size, "red"))

    assert isinstance(resized, Image.Image)
    assert min(resized.size) == 224
    assert max(resized.size) <= 128 * 224
    assert resized.getpixel((0, 0)) == (255, 0, 0)

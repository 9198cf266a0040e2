import json

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from lit_finetune.backbones.timm import data_config
from lit_finetune.images.data_config import IMAGENET_MEAN, IMAGENET_STD, DataConfig, eval_transform


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

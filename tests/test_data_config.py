import json

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from lit_finetune.data_config import IMAGENET_MEAN, IMAGENET_STD, DataConfig, eval_transform


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
    config = DataConfig(mean=(0.5,) * 3, std=(0.25,) * 3, image_size=(64, 32), resize_size=40)
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

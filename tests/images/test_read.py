from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from lit_finetune.images.read import Box, load_image, load_part, to_rgb


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "I;16"])
def test_a_picture_of_any_mode_becomes_rgb(mode):
    image = to_rgb(Image.new(mode, (3, 2)))
    assert (image.mode, image.size) == ("RGB", (3, 2))


def test_sixteen_bits_keep_their_greys(tmp_path):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    path = saved(Image.fromarray(ramp), tmp_path / "grey.png")
    assert np.array_equal(np.asarray(load_image(path))[..., 0].ravel(), np.arange(256))


def test_a_palette_with_transparency_is_read_without_a_warning(tmp_path, recwarn):
    image = Image.new("P", (2, 2))
    image.putpalette([255, 0, 0] * 256)
    path = saved(image, tmp_path / "palette.png", transparency=bytes(range(256)))
    assert load_image(path).getpixel((0, 0)) == (255, 0, 0)
    assert not recwarn


def test_a_photograph_taken_sideways_is_turned_upright(tmp_path):
    image = Image.new("RGB", (20, 10))
    exif = Image.Exif()
    exif[0x0112] = 6
    assert load_image(saved(image, tmp_path / "sideways.jpg", exif=exif)).size == (10, 20)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>"])
def test_a_file_that_is_no_picture_is_named(tmp_path, content):
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(OSError, match=r"photo\.jpg' cannot be read as a picture"):
        load_image(path)


def test_a_truncated_picture_is_named(tmp_path):
    path = saved(Image.effect_noise((64, 64), 50), tmp_path / "half.jpg")
    path.write_bytes(path.read_bytes()[:800])
    with pytest.raises(OSError, match=r"half\.jpg' cannot be read as a picture.*truncated"):
        load_image(path)


def test_pixels_of_unknown_range_are_refused(tmp_path):
    path = saved(Image.new("F", (2, 2)), tmp_path / "float.tiff")
    with pytest.raises(OSError, match="floats of unknown range"):
        load_image(path)


def smooth(size: tuple[int, int]) -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("smaller", "size"), [(1.9, (640, 480)), (2, (320, 240)), (7.9, (160, 120))]
)
def test_a_jpeg_is_decoded_no_smaller_than_it_may_be(tmp_path, smaller, size):
    smooth((640, 480)).save(tmp_path / "large.jpg", quality=95)
    picture, box = load_part(tmp_path / "large.jpg", lambda *_: (Box(0, 0, 480, 640), smaller))

    assert picture.size == size
    assert box == (0, 0, *size[::-1])
    near = np.asarray(load_image(tmp_path / "large.jpg").resize(size, Image.Resampling.BOX))
    assert np.abs(np.asarray(picture).astype(int) - near).mean() < 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_part_is_found_again_in_the_smaller_picture_however_it_is_turned(tmp_path, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    smooth((641, 479)).save(tmp_path / "turned.jpg", quality=95, exif=exif)
    whole = load_image(tmp_path / "turned.jpg")
    asked = []

    def choose(height: int, width: int) -> tuple[Box, float]:
        asked.append((width, height))
        return Box(80, 160, 200, 240), 2.0

    picture, box = load_part(tmp_path / "turned.jpg", choose)
    part = picture.crop((box.left, box.top, box.left + box.width, box.top + box.height))
    expected = whole.crop((160, 80, 400, 280)).resize(part.size, Image.Resampling.BOX)

    assert asked == [whole.size]
    assert part.size == (120, 100)
    assert np.abs(np.asarray(part).astype(int) - np.asarray(expected)).mean() < 3


def test_only_a_jpeg_is_decoded_smaller(tmp_path):
    smooth((640, 480)).save(tmp_path / "large.png")
    picture, box = load_part(tmp_path / "large.png", lambda *_: (Box(1, 2, 3, 4), 8.0))

    assert picture.size == (640, 480)
    assert box == (1, 2, 3, 4)

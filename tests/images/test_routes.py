"""Pictures reach the network as Pillow and torchvision show them, by every route."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torchvision.transforms import v2

from lit_finetune import FinetuneClassifier
from lit_finetune.datamodules import ImageFolderDataModule
from lit_finetune.images.read import as_rgb, load_image, load_part

WIDTH, HEIGHT, SIZE = 48, 32, 24
MODES = {
    "jpg": ("RGB", "L", "CMYK"),
    "png": ("RGB", "L", "1", "P", "LA", "RGBA", "I;16"),
    "webp": ("RGB", "RGBA"),
    "tif": ("RGB", "L", "1", "P", "LA", "RGBA", "CMYK", "YCbCr", "I;16"),
    "avif": ("RGB", "RGBA"),
    "mpo": ("RGB",),
    "jp2": ("RGB", "L", "RGBA"),
    "bmp": ("RGB", "L", "1", "P"),
    "ppm": ("RGB", "L", "1"),
    "tga": ("RGB", "L", "RGBA"),
}
TURNED = ("jpg", "png", "webp", "tif", "avif", "mpo")  # formats with EXIF
FILES = [
    (ext, mode, orientation)
    for ext, modes in MODES.items()
    for mode in modes
    for orientation in (range(1, 9) if ext in TURNED and mode == "RGB" else (6,))
]


def scene(mode: str) -> Image.Image:
    """Colours that differ in every corner, under a mask that differs as well."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    pixels = np.stack([columns * 5, rows * 7, (rows + columns) * 3], -1).astype(np.uint8)
    if mode == "I;16":
        return Image.fromarray((columns * 900 + rows * 600).astype(np.uint16))
    image = Image.fromarray(pixels)
    if mode in ("LA", "RGBA"):
        image = image.convert(mode)
        image.putalpha(Image.fromarray((columns * 5).astype(np.uint8)))
        return image
    return image.quantize(32) if mode == "P" else image.convert(mode)


def save(path: Path, mode: str, orientation: int) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"exif": exif} if path.suffix[1:] in TURNED else {}
    if path.suffix == ".mpo":
        options |= {"append_images": [Image.new("RGB", (8, 8))], "save_all": True}
    try:
        scene(mode).save(path, **options)
    except (KeyError, OSError) as error:
        pytest.skip(f"this Pillow writes no such file: {error}")
    return path


def shown(path: Path) -> Image.Image:
    """What Pillow shows; it clips 16 bits, which torchvision brings to 8 as here.

    By a name Pillow would shear some TIFFs that are turned by a quarter.
    """
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(path.read_bytes())))
    if image.mode.startswith("I"):
        deep = torch.from_numpy(np.asarray(image).astype(np.uint16))
        return Image.fromarray(v2.functional.to_dtype(deep, torch.uint8, scale=True).numpy())
    return image.convert("RGB")


@pytest.mark.parametrize(("ext", "mode", "orientation"), FILES)
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_a_picture_is_read_as_pillow_shows_it(tmp_path, ext, mode, orientation):
    path = save(tmp_path / f"x.{ext}", mode, orientation)
    expected = shown(path).convert("RGB")
    loaded = Image.open(io.BytesIO(path.read_bytes()))
    loaded.load()
    seen = {
        "file": load_image(path),
        "bytes": load_part(io.BytesIO(path.read_bytes()), name="x")[0],
        "opened": as_rgb(Image.open(path)),
        "loaded": as_rgb(loaded),
        "upright": as_rgb(ImageOps.exif_transpose(loaded)),
    }
    for route, image in seen.items():
        assert image.mode == "RGB"
        assert np.array_equal(np.asarray(image), np.asarray(expected)), route


class Eye(nn.Module):
    """A network whose logits are two pixels of the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        nn.init.eye_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)
        self.data_config = {"image_size": [SIZE, SIZE], "resize_size": SIZE}

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(torch.stack([images[:, 0, 2, 3], images[:, 1, 20, 5]], 1))


def of_val(folder: Path, **options: object) -> Callable[[], Tensor]:
    def read() -> Tensor:
        data = ImageFolderDataModule(folder, **SIZES, **options)
        data.prepare_data()
        data.setup("validate" if "cache" not in options else "fit")
        return next(iter(data.val_dataloader()))[0][0]

    return read


def of_predict(folder: Path) -> Tensor:
    data = ImageFolderDataModule(folder, predict_dir=folder / "val/a", **SIZES)
    data.prepare_data()
    data.setup("predict")
    return next(iter(data.predict_dataloader()))[0][0]


def of_training(folder: Path, **options: object) -> Tensor:
    data = ImageFolderDataModule(folder, train_augmentation="none", **SIZES, **options)
    data.setup("fit")
    return next(iter(data.plain_train_dataloader()))[0][0]


SIZES = {"image_size": SIZE, "resize_size": SIZE, "batch_size": 1, "num_workers": 0}
ROUTES: dict[str, Callable[[Path], Tensor]] = {
    "validation": lambda folder: of_val(folder)(),
    "validation from memory": lambda folder: of_val(folder, cache="ram")(),
    "validation from disk": lambda folder: of_val(folder, cache="disk")(),
    "prediction": of_predict,
    "training": of_training,
    "training from disk": lambda folder: of_training(folder, cache="disk", cache_size=HEIGHT),
}


@pytest.mark.filterwarnings("ignore:Copies of one file")
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("ext", "mode", "orientation"),
    [
        *(("jpg", "RGB", 6), ("png", "P", 8), ("tif", "RGB", 5), ("tif", "I;16", 7)),
        *(("webp", "RGBA", 3), ("avif", "RGB", 6), ("mpo", "RGB", 6), ("jpg", "CMYK", 2)),
    ],
)
def test_the_network_is_given_what_torchvision_makes_of_it(tmp_path, route, ext, mode, orientation):
    for place in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / place).mkdir(parents=True)
        scene("RGB").rotate(90, expand=True).save(tmp_path / place / f"z{len(place)}.png")
    for part in ("train", "val"):
        path = save(tmp_path / part / f"a/1.{ext}", mode, orientation)
    expected = v2.Compose(
        [
            v2.Resize(SIZE, antialias=True),
            v2.CenterCrop(SIZE),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )(shown(path).convert("RGB"))
    assert torch.equal(ROUTES[route](tmp_path), expected)


@pytest.mark.parametrize("ext", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_picture_that_was_opened_is_predicted_as_its_file(tmp_path, ext, orientation):
    path = save(tmp_path / f"x.{ext}", "RGB", orientation)
    model = FinetuneClassifier(Eye(), num_classes=2)
    assert model.predict_image(path) == model.predict_image(Image.open(path))
    assert model.predict_image(path) == model.predict_image(shown(path))


@pytest.mark.parametrize("ext", ["jpg", "tif", "png", "webp", "avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_training_parts_keep_their_proportions_however_the_file_is_turned(
    tmp_path, ext, orientation
):
    columns = np.tile(np.arange(240, dtype=np.uint8), (60, 1))
    rows = np.tile(np.arange(0, 240, 4, dtype=np.uint8)[:, None], (1, 240))
    upright = Image.fromarray(np.stack([columns, rows, columns], -1))
    back = {5: 5, 6: 2, 7: 6, 8: 4}  # Transpose.TRANSPOSE, ROTATE_90, TRANSVERSE, ROTATE_270
    stored = upright.transpose(Image.Transpose(back[orientation])) if orientation > 4 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    for place in ("train/a", "train/b"):
        (tmp_path / place).mkdir(parents=True)
        for i in range(3):
            stored.save(tmp_path / place / f"{i}.{ext}", exif=exif)
    data = ImageFolderDataModule(
        tmp_path, val_split=0.0, image_size=32, mean=0.0, std=1.0, num_workers=0, batch_size=6
    )
    data.setup("fit")
    parts = 255 * torch.cat([images for images, _ in data.train_dataloader()])
    wide = parts[:, 0].amax((1, 2)) - parts[:, 0].amin((1, 2))
    high = (parts[:, 1].amax((1, 2)) - parts[:, 1].amin((1, 2))) / 4
    ratio = wide / high
    assert ratio.min() > 0.6
    assert ratio.max() < 1.6


@pytest.mark.parametrize("ext", ["jpg", "png", "webp"])
@pytest.mark.parametrize(
    "exif",
    [b"Exif\0\0garbage!!", b"Exif\0\0II*\0\x08\0\0\0\x01\0\0\1\2\0\1\0\0\0A\0\0\0\0\0\0\0"],
)
def test_damaged_exif_leaves_the_picture_as_it_is(tmp_path, ext, exif):
    scene("RGB").save(tmp_path / f"x.{ext}", exif=exif)
    expected = Image.open(tmp_path / f"x.{ext}").convert("RGB")
    assert np.array_equal(load_image(tmp_path / f"x.{ext}"), expected)


RAMP = np.tile(np.linspace(0, 65535, 64), (64, 1)).astype(np.uint16)


@pytest.mark.parametrize(
    ("pixels", "ext"),
    [
        (RAMP >> 8, "png"),
        (RAMP >> 6, "png"),
        (RAMP >> 4, "tif"),
        (RAMP >> 2, "png"),
        ((RAMP >> 8).astype(np.int32), "tif"),
        (RAMP.astype(np.int32) * 1000, "tif"),
        (RAMP.astype(np.int32) - 30000, "tif"),
        (RAMP.astype(np.float32) / 65535, "tif"),
    ],
)
def test_pixels_of_few_bits_or_of_unknown_range_are_refused_by_name(tmp_path, pixels, ext):
    path = tmp_path / f"scan.{ext}"
    Image.fromarray(pixels).save(path)
    with pytest.raises(OSError, match=r"scan\.\w+' cannot be read.*store it with 8 bits"):
        load_image(path)
    with pytest.raises(ValueError, match="store it with 8 bits"):
        as_rgb(Image.open(path))


def test_twelve_packed_bits_have_their_own_range(tmp_path):
    packed = np.array([[0xFF, 0xF8, 0x00]], np.uint8).tobytes()  # two pixels: 4095, 2048
    tags = {256: 2, 257: 1, 258: 12, 259: 1, 262: 1, 273: 122, 277: 1, 278: 1, 279: 3}
    entries = b"".join(
        tag.to_bytes(2, "little") + b"\4\0\1\0\0\0" + value.to_bytes(4, "little")
        for tag, value in tags.items()
    )
    head = b"II*\0\x08\0\0\0" + len(tags).to_bytes(2, "little") + entries + b"\0\0\0\0"
    path = tmp_path / "packed.tif"
    path.write_bytes(head.ljust(122, b"\0") + packed)
    assert [load_image(path).getpixel((x, 0))[0] for x in (0, 1)] == [255, 128]


def png_of_16_bits(path: Path, values: list[int]) -> Path:
    """A PNG in RGB of 16 bits a channel, one row, grey; Pillow itself writes none."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", len(values), 1, 16, 2, 0, 0, 0)
    row = b"\0" + b"".join(struct.pack(">HHH", v, v, v) for v in values)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    return path


def test_colours_of_16_bits_are_brought_to_8(tmp_path):
    path = png_of_16_bits(tmp_path / "x.png", [0, 256, 65535])
    assert [load_image(path).getpixel((x, 0))[0] for x in range(3)] == [0, 1, 255]


@pytest.mark.parametrize("white", [255, 1023, 4095, 16383])
def test_colours_of_few_bits_in_16_are_refused_by_name(tmp_path, white):
    path = png_of_16_bits(tmp_path / "x.png", [0, white // 2, white])
    with pytest.raises(OSError, match=r"x\.png' cannot be read.*16 bits"):
        load_image(path)


def test_a_program_is_no_picture(tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(OSError, match=r"photo\.jpg' cannot be read as a picture"):
        load_image(path)


def test_of_an_animation_the_first_picture_is_seen(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green")]
    for ext in ("gif", "webp", "png", "tif"):
        options = {"lossless": True} if ext == "webp" else {}
        path = tmp_path / f"x.{ext}"
        frames[0].save(path, save_all=True, append_images=frames[1:], **options)
        assert load_image(path).getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize("image", [np.zeros((8, 8, 3), np.uint8), torch.zeros(3, 8, 8)])
def test_what_is_no_picture_of_pillows_is_told(image):
    with pytest.raises(TypeError, match="fromarray"):
        FinetuneClassifier(Eye(), num_classes=2).predict_image(image)

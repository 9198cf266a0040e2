"""Pictures to try the examples on: coloured shapes, drawn into a small folder."""

import colorsys
import random
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from lit_finetune.datamodules import ImageFolderDataModule

SIDES = {"triangle": 3, "square": 4, "hexagon": 6}


def shapes(num_classes: int, *, per_class: int = 8, **options: Any) -> ImageFolderDataModule:
    """A datamodule of small coloured shapes; the options are those of `ImageFolderDataModule`."""
    folder = draw_shapes(num_classes, per_class=per_class)
    options = {"image_size": 32, "batch_size": 8, "num_workers": 0, **options}
    return ImageFolderDataModule(folder, **options)


def draw_shapes(num_classes: int, *, per_class: int = 8) -> Path:
    """Draw a folder for each class into `data/`, the same pictures each time; return where."""
    root = Path("data", f"shapes_{num_classes}x{per_class}")
    kinds = list(SIDES)
    for label in range(num_classes):
        kind = kinds[label % len(kinds)]
        folder = root / f"{kind}_{label:02}"
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(per_class):
            seed = random.Random(f"{label}/{index}")
            draw_shape(SIDES[kind], label / num_classes, seed).save(folder / f"{index:02}.png")
    return root


def draw_shape(sides: int, hue: float, seed: random.Random, size: int = 40) -> Image.Image:
    """One polygon of a hue, at a place, a size and an angle of its own."""
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.9, 0.9))
    x, y = (seed.uniform(0.35, 0.65) * size for _ in range(2))
    radius = seed.uniform(0.2, 0.35) * size
    picture = Image.new("RGB", (size, size), "white")
    pen = ImageDraw.Draw(picture)
    pen.regular_polygon((x, y, radius), sides, seed.uniform(0, 360), fill=(red, green, blue))
    return picture

"""CIFAR-10 and CIFAR-100, from the original files."""

import os
import tempfile
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from torchvision import datasets
from torchvision.datasets.utils import check_integrity, extract_archive
from typing_extensions import override

from lit_finetune._errors import one_of
from lit_finetune.images.data_config import DataConfig

from .base import ImageDataModule, Part
from .dataset import ArraySamples
from .sources.stratified_split import check_fractions, split_fractions, stratified_split
from .transforms.presets import small_image_geometry

CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"
CIFAR100_CLASSES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
    camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
    cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
    lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
    oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
    possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
    spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
CLASSES = {"cifar10": CIFAR10_CLASSES.split(), "cifar100": CIFAR100_CLASSES.split()}


class CIFARDataModule(ImageDataModule):
    """CIFAR-10 or CIFAR-100: 50,000 images for training and validation, and 10,000 for testing.

    The images are resized to the input size of the network, without a crop; give `image_size=32`
    for a network made for CIFAR. The `auto` augmentation is a shift by up to an eighth and a
    horizontal flip.

    Args:
        name: `cifar10` or `cifar100`.
        data_dir: Folder of the original files.
        download: Whether to download missing files.
        val_split: Share of the 50,000 images for validation.
        **kwargs: See `ImageDataModule`.
    """

    fills_frame = True

    def __init__(
        self,
        name: Literal["cifar10", "cifar100"] = "cifar10",
        *,
        data_dir: str | Path = "data",
        download: bool = True,
        val_split: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_fractions(val_split=val_split)
        self.variant = one_of(name, CLASSES, "CIFAR data set")
        self.data_dir = Path(data_dir).expanduser()
        self.download = download
        self.val_split = val_split

    @property
    @override
    def classes(self) -> list[str]:
        return CLASSES[self.variant]

    @override
    def train_geometry(self, config: DataConfig) -> list[nn.Module]:
        return small_image_geometry(config)

    @property
    @override
    def pictures_dir(self) -> Path:
        return self.data_dir

    @override
    def prepare_data(self) -> None:
        if wrong_files(self._kind, self.data_dir):
            fetch(self._kind, self.data_dir, download=self.download)
        super().prepare_data()

    @override
    def read_samples(self, part: Part) -> ArraySamples:
        official = "train" if part in ("train", "val") else "test"
        data = self._kind(self.data_dir, train=official == "train")
        names = [f"{self.variant}_{official}_{i:05d}" for i in range(len(data.targets))]
        samples = ArraySamples(data.data, names, data.targets)
        if official == "test":
            return samples
        shares = split_fractions(val_split=self.val_split, test_split=0)
        parts = stratified_split(samples.labels, list(shares.values()), seed=self.seed)
        chosen = dict(zip(shares, parts, strict=True)).get(part, [])
        if part == "train":
            rank_zero_info(
                f"Of the {len(names):,} training pictures of {self.variant}, {len(chosen):,} train "
                f"and {len(names) - len(chosen):,} validate (`val_split` {self.val_split})."
            )
        return samples.subset(chosen)

    @property
    def _kind(self) -> type[datasets.CIFAR10]:
        return datasets.CIFAR10 if self.variant == "cifar10" else datasets.CIFAR100


def wrong_files(kind: type[datasets.CIFAR10], folder: Path) -> list[str]:
    """The files that are missing or not the original ones."""
    files = [*kind.train_list, *kind.test_list, [kind.meta["filename"], kind.meta["md5"]]]
    base = folder / kind.base_folder
    return [name for name, md5 in files if not check_integrity(base / name, md5)]


def fetch(kind: type[datasets.CIFAR10], folder: Path, *, download: bool) -> None:
    """Extract all files of the archive or none, and download the archive if it is missing."""
    archive = folder / kind.filename
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as temporary:
        try:
            if check_integrity(archive, kind.tgz_md5):
                extract_archive(archive, temporary)
            elif download:
                kind(temporary, download=True)
            else:
                raise FileNotFoundError("`download` is off")
        except Exception as error:  # network, disk or archive: the advice is the same
            raise RuntimeError(how_to_place(kind, folder, error)) from error
        move_files(Path(temporary, kind.base_folder), folder / kind.base_folder)


def move_files(source: Path, target: Path) -> None:
    """Move all files of a folder into another one, and replace those of the same names."""
    target.mkdir(exist_ok=True)
    for path in source.iterdir():
        os.replace(path, target / path.name)


def how_to_place(kind: type[datasets.CIFAR10], folder: Path, error: Exception) -> str:
    """How to place the files by hand after a failed download."""
    archive = folder / kind.filename
    hint = " The archive in that folder has another md5 sum." if archive.exists() else ""
    return (
        f"In '{(folder / kind.base_folder).absolute()}', {', '.join(wrong_files(kind, folder))} "
        f"are missing or not the original files of {kind.__name__}, and the archive could not be "
        f"downloaded: {error}. To place it by hand, put {kind.filename} (from {kind.url}, md5 "
        f"{kind.tgz_md5}) into '{folder.absolute()}', and run again.{hint}"
    )

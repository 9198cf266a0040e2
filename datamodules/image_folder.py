"""Photographs in folders, one folder for each class."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from lit_finetune._errors import one_of
from lit_finetune.images.suffixes import IMAGE_SUFFIXES

from .base import PARTS, ImageDataModule, Part
from .dataset import UNLABELLED, FileSamples
from .sources.class_folders import check_classes, with_known_spelling
from .sources.layout import Layout, find_layout
from .sources.saved_split import split_train_images
from .sources.scan import ImageFolders
from .sources.skipped import summary
from .sources.split_file import SplitPlan
from .sources.split_names import Split
from .sources.stratified_split import check_fractions


class ImageFolderDataModule(ImageDataModule):
    """Photographs in folders: `data_dir/<class>/…`, or `data_dir/train/<class>/…` and so on.

    A folder whose name denotes a part (`train`, `training_set`, `val`, `dev`, `test`, `seg_test`,
    …) is used as that part. Parts without a folder are split from the training images, stratified
    by class, with copies of a file in one part. The split is written to a small file, so that
    every process and every resumed run uses the same. It is not changed later: new images are left
    out with a warning until the file is deleted. The label of a class is its index in the sorted
    names of the training folders, for every part. Without a `train` folder only validation and
    testing are possible, and the labels come from the part that has all classes of the other. Each
    file counts once, whatever links lead to it (`docs/data.md`).

    Args:
        data_dir: Folder of the images. With a `predict_dir` it may be left out to predict with a
            trained model, which then defines the classes.
        val_split: Share of the training images for validation, without a `val` folder.
        test_split: Share of the training images for testing, without a `test` folder.
        split_file: File of the split; by default a hidden file in `data_dir`.
        on_corrupt: `raise` an error that names unreadable images, or `skip` them. To skip them,
            every image is decoded once before the first run, and the result is recorded in
            `data_dir`. Otherwise the starts and ends of the files are checked before each run.
        classes: The names of the class folders, in the order of their labels: for another order
            than the sorted one, or if the folders in class folders look like classes in parts.
        predict_dir: Folder of images to predict, at any depth, labelled or not; by default the test
            images, or without any those of validation.
        **kwargs: See `ImageDataModule`.
    """

    def __init__(
        self,
        data_dir: str | Path | None = None,
        *,
        val_split: float = 0.2,
        test_split: float = 0.0,
        split_file: str | Path | None = None,
        on_corrupt: Literal["raise", "skip"] = "raise",
        classes: Sequence[str] | None = None,
        predict_dir: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_fractions(val_split=val_split, test_split=test_split)
        self.on_corrupt = one_of(on_corrupt, ("raise", "skip"), "on_corrupt")
        self.data_dir = Path(folder_of_pictures(data_dir, predict_dir)).expanduser()
        has_classes = data_dir is not None
        empty = Layout(self.data_dir, {}, ())
        self.layout = find_layout(self.data_dir, classes) if has_classes else empty
        if warning := self.layout.warning():
            rank_zero_warn(warning)
        if test_split and "test" in self.layout.folders:
            raise ValueError(
                f"`test_split` is {test_split}, but '{self.layout.folders['test']}' holds test "
                "pictures already. Leave `test_split` out."
            )
        has_val = "val" in self.layout.folders
        self.plan = SplitPlan(
            val_split=0.0 if has_val else val_split, test_split=test_split, seed=self.seed
        )
        self.split_file = Path(split_file or self.data_dir / self.plan.file_name()).expanduser()
        self.predict_dir = None if predict_dir is None else Path(predict_dir).expanduser()
        self._folders = ImageFolders(
            self.layout, predict_dir=self.predict_dir, on_corrupt=self.on_corrupt
        )
        self._samples: dict[Part, FileSamples] = {}

    @property
    @override
    def classes(self) -> list[str]:
        if self.layout.folders:
            return list(self.layout.classes)
        model = self.trainer.lightning_module if self.trainer is not None else None
        if (known := getattr(model, "classes", None)) is None:
            raise ValueError(
                f"'{self.data_dir}' holds pictures to predict, and no classes: give the folder of"
                " class folders as `data_dir`, or predict with a checkpoint, which knows them."
            )
        return list(known)

    @property
    @override
    def pictures_dir(self) -> Path:
        return self.data_dir

    @override
    def prepare_data(self) -> None:
        # One process checks the files first; the others read the split and the record of it.
        running = self.trainer.state.fn if self.trainer is not None else None
        stage = running.value if running else "fit"
        self.check_files(stage)
        for part in PARTS[stage]:
            self.read_samples(part)
        if stage == "fit":
            self._warn_of_test_classes()
            self._folders.check_shared_files(self._parts)
        super().prepare_data()

    def check_files(self, stage: str = "fit") -> None:
        """Refuse unreadable images, or skip them, according to `on_corrupt`.

        Args:
            stage: `fit` checks all parts, because the others are used after training; `validate`,
                `test` and `predict` check the part that they read.

        Raises:
            OSError: There are unreadable images, and `on_corrupt` is `raise`; it names all of them.
        """
        parts: list[str] = list(self._folders.folders)
        if stage == "fit":
            has_predict = self.predict_dir is not None and self.predict_dir.is_dir()
            self._folders.check(parts if has_predict else [*self.layout.folders])
        elif stage == "predict" and self.predict_dir is not None:
            self._folders.check(["predict"])
        else:
            order = {"validate": ("val",), "test": ("test",), "predict": ("test", "val")}[stage]
            self._folders.check([next((p for p in (*order, "train") if p in parts), parts[0])])

    @override
    def read_samples(self, part: Part) -> FileSamples:
        if part not in self._samples:
            self._samples[part] = self._find_samples(part)
        return self._samples[part]

    @override
    def where_from(self, part: Part) -> str:
        if part == "predict" and self.predict_dir:
            return f"'{self.predict_dir}' holds none"
        parts = ", ".join(f"{split} ('{path}')" for split, path in self.layout.folders.items())
        return (
            f"there is {parts}, `val_split` is {self.plan.val_split}, "
            f"`test_split` is {self.plan.test_split}, `predict_dir` is {self.predict_dir}"
        )

    def _find_samples(self, part: Part) -> FileSamples:
        if part == "predict":
            return self._find_predict_samples()
        labels = self._labels(part)
        folder = part if part in self.layout.folders else "train"
        names = self._folders.readable(folder, list(labels)) if labels else []
        samples = FileSamples(self.data_dir, names, [labels[name] for name in names])
        if part == "train" and part in self.layout.folders:
            self._refuse_empty(samples)
        elif part in ("val", "test"):
            self._warn_of_missing_classes(samples, part)
        return samples

    def _find_predict_samples(self) -> FileSamples:
        if self.predict_dir is None:
            test = self.read_samples("test")
            return test if test.names else self.read_samples("val")
        names = self._folders.readable("predict", list(self._folders.listing("predict").images))
        return FileSamples(self.predict_dir, names, [UNLABELLED] * len(names))

    def _labels(self, split: Split) -> dict[str, int]:
        """The label of each image of a split, by name."""
        if split != "train" and split in self.layout.folders:
            classes = self._list_split_folder(split)
        else:
            classes = {name: self._train_classes[name] for name in self._parts.get(split, [])}
        indices = self.class_to_idx
        return {name: indices[label] for name, label in classes.items()}

    def _list_split_folder(self, split: Split) -> Mapping[str, str]:
        folder = self.layout.folders[split]
        classes = with_known_spelling(self._folders.listing(split).classes, self.classes)
        if not classes:
            raise ValueError(
                f"'{folder}' holds no pictures in folders of their classes. Pictures without a "
                "class can only be predicted: give the folder as `predict_dir`."
            )
        source = self.layout.label_source
        found = classes.values()
        check_classes(found, known=self.classes, folder=folder, source=source)
        return classes

    def _warn_of_test_classes(self) -> None:
        """Warn before training of test images that testing will refuse."""
        if "test" not in self.layout.folders or not self._folders.listing("test").classes:
            return  # images without classes are meant for prediction
        try:
            self.read_samples("test")
        except ValueError as error:
            rank_zero_warn(f"`test` will be refused: {error}")

    @cached_property
    def _train_classes(self) -> Mapping[str, str]:
        """The class of each image in the training folder, by name."""
        classes = self._folders.listing("train").classes
        empty = sorted(set(self.classes) - set(classes.values()))
        if empty:
            raise ValueError(
                f"'{self.layout.folders['train']}' has no pictures of {summary(empty)}: add some, "
                f"or remove the folder. Files are read that end in {', '.join(IMAGE_SUFFIXES)}."
            )
        return classes

    @cached_property
    def _parts(self) -> Mapping[str, list[str]]:
        """The names of the images in the training folder, split into parts."""
        if "train" not in self.layout.folders:
            return {}
        classes = self._train_classes
        readable = self._folders.readable("train", list(classes))
        return split_train_images(
            classes,
            self.plan,
            root=self.data_dir,
            split_file=self.split_file,
            unreadable=set(classes).difference(readable),
        )

    def _warn_of_missing_classes(self, samples: FileSamples, part: Split) -> None:
        """Warn of classes without images in an evaluated part."""
        found = set(samples.labels)
        missing = [name for index, name in enumerate(self.classes) if index not in found]
        if not samples.names or not missing:
            return
        if part in self.layout.folders:
            where, source = self.layout.folders[part], self.layout.label_source
            names = summary(missing)
            text = f"'{where}' has no pictures of {names}; the labels stay those of {source}."
        else:
            text = (
                f"There are no pictures of {summary(missing)} for {part} in the split in"
                f" '{self.split_file}'. To split all pictures again, delete it."
            )
        rank_zero_warn(text)

    def _refuse_empty(self, samples: FileSamples) -> None:
        found = set(samples.labels)
        empty = [name for index, name in enumerate(self.classes) if index not in found]
        if empty:
            raise ValueError(
                f"Of {summary(empty)} no picture is left to train on: those in "
                f"'{self.layout.folders['train']}' cannot be read, or are newer than the split in "
                f"'{self.split_file}', which can be deleted."
            )


def folder_of_pictures(data_dir: str | Path | None, predict_dir: str | Path | None) -> str | Path:
    """The main folder of a data module: `data_dir`, or else `predict_dir`."""
    folder = data_dir if data_dir is not None else predict_dir
    if folder is None:
        raise ValueError(
            "Give the folder of pictures as `data_dir`, or as `predict_dir` those that are only to"
            " be predicted."
        )
    return folder

"""Photographs in folders, one folder a class."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from typing_extensions import override

from lit_finetune._names import one_of

from .audit import unopenable, unreadable
from .base import PARTS, ImageDataModule, Part
from .datasets import UNLABELLED, FileSamples
from .folders import Split, check_classes, check_folder, find_layout, list_classes, list_pictures
from .split_file import SplitPlan, read_split, split_by_class, write_split
from .splits import check_fractions

SHOWN = 10


class ImageFolderDataModule(ImageDataModule):
    """Photographs in folders: `data_dir/<class>/…`, or `data_dir/train/<class>/…` and so on.

    Folders `train`, `val` (or `valid`, `validation`) and `test` are taken as they are. What has no
    folder is split from the training pictures, class by class, and the split is written to a small
    file, so that every process and every resumed run has the same. It stays as it is: pictures that
    come later are left out with a warning until the file is deleted. The label of a class is its
    place among the sorted names of the training folders, in every split; without a `train` folder
    there is only validation and testing, and the labels come from what there is.

    Args:
        data_dir: Folder that holds the pictures.
        val_split: Share of the training pictures for validation, where there is no `val` folder.
        test_split: Share of the training pictures for testing, where there is no `test` folder.
        split_file: Where the split is kept; a hidden file in `data_dir`, if not given.
        on_corrupt: What to do about pictures that cannot be read: `raise` an error that names them,
            or `skip` them. To skip, every picture is read once before the first run; what was found
            is kept in `data_dir`.
        predict_dir: Folder of pictures to predict, in any depth, labelled or not; the test pictures
            if not given, or those of validation where there are none.
        **kwargs: See `ImageDataModule`.
    """

    def __init__(
        self,
        data_dir: str | Path,
        *,
        val_split: float = 0.2,
        test_split: float = 0.0,
        split_file: str | Path | None = None,
        on_corrupt: Literal["raise", "skip"] = "raise",
        predict_dir: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_fractions(val_split=val_split, test_split=test_split)
        self.on_corrupt = one_of(on_corrupt, ("raise", "skip"), "on_corrupt")
        self.data_dir = Path(data_dir).expanduser()
        self.layout = find_layout(self.data_dir)
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
        self._samples: dict[Part, FileSamples] = {}

    @property
    @override
    def classes(self) -> list[str]:
        return list(self.layout.classes)

    @property
    @override
    def pictures_dir(self) -> Path:
        return self.data_dir

    @override
    def prepare_data(self) -> None:
        # One process looks at the files first; the others find the split and the record it wrote.
        running = self.trainer.state.fn if self.trainer is not None else None
        for part in PARTS[running.value if running else "fit"]:
            samples = self.read_samples(part)
            if self.on_corrupt == "raise":
                refuse_unopenable(samples)
        super().prepare_data()

    @override
    def read_samples(self, part: Part) -> FileSamples:
        if part not in self._samples:
            self._samples[part] = self._find_samples(part)
        return self._samples[part]

    @override
    def where_from(self, part: Part) -> str:
        if part == "predict" and self.predict_dir:
            return f"'{self.predict_dir}' holds none"
        there = ", ".join(f"{split} ('{path}')" for split, path in self.layout.folders.items())
        return (
            f"there is {there}, `val_split` is {self.plan.val_split}, "
            f"`test_split` is {self.plan.test_split}, `predict_dir` is {self.predict_dir}"
        )

    def _find_samples(self, part: Part) -> FileSamples:
        if part == "predict":
            return self._find_predict_samples()
        samples = self._readable(self.data_dir, self._labels(part))
        if part == "train" and part in self.layout.folders:
            self._refuse_empty(samples)
        return samples

    def _find_predict_samples(self) -> FileSamples:
        if self.predict_dir is None:
            test = self.read_samples("test")
            return test if test.names else self.read_samples("val")
        check_folder(self.predict_dir)
        names, strays = list_pictures(self.predict_dir, root=self.predict_dir)
        tell_strays(strays)
        return self._readable(self.predict_dir, dict.fromkeys(names, UNLABELLED))

    def _labels(self, split: Split) -> dict[str, int]:
        """The label of each picture of a split, by its name."""
        if split != "train" and split in self.layout.folders:
            classes = self._list_split_folder(split)
        else:
            classes = {name: self._pool[name] for name in self._parts.get(split, [])}
        indices = self.class_to_idx
        return {name: indices[label] for name, label in classes.items()}

    def _list_split_folder(self, split: Split) -> Mapping[str, str]:
        folder = self.layout.folders[split]
        listing = list_classes(folder, root=self.data_dir)
        tell_strays(listing.strays)
        if not listing.classes:
            raise ValueError(
                f"'{folder}' holds no pictures in folders of their classes. Pictures without a "
                "class can only be predicted: give the folder as `predict_dir`."
            )
        missing = check_classes(listing.classes.values(), known=self.classes, folder=folder)
        if missing:
            rank_zero_warn(
                f"'{folder}' has no pictures of {some(missing)}; the labels stay those of training."
            )
        return listing.classes

    @cached_property
    def _pool(self) -> Mapping[str, str]:
        """The class of each picture in the training folder, by its name."""
        folder = self.layout.folders["train"]
        listing = list_classes(folder, root=self.data_dir)
        tell_strays(listing.strays)
        empty = sorted(set(self.classes) - set(listing.classes.values()))
        if empty:
            raise ValueError(
                f"'{folder}' has no pictures of {some(empty)}: add some, or remove the folder."
            )
        return listing.classes

    @cached_property
    def _parts(self) -> Mapping[str, list[str]]:
        """The names of the pictures in the training folder, as they are divided."""
        if "train" not in self.layout.folders:
            return {}
        if len(self.plan.fractions()) == 1:
            return {"train": list(self._pool)}
        if not self.split_file.exists():
            write_split(self.split_file, split_by_class(self._pool, self.plan), self.plan)
            rank_zero_info(f"The split of the pictures is kept in '{self.split_file}'.")
        parts = read_split(self.split_file, self.plan)
        self._tell_changes({name for names in parts.values() for name in names})
        return {
            part: [name for name in names if name in self._pool] for part, names in parts.items()
        }

    def _tell_changes(self, known: set[str]) -> None:
        """Warn about pictures that came or went since the split was made."""
        gone = sorted(known.difference(self._pool))
        new = [name for name in self._pool if name not in known]
        if gone:
            rank_zero_warn(f"Of the split in '{self.split_file}', {some(gone)} are gone.")
        if new:
            rank_zero_warn(
                f"Not used, for they are newer than the split: {some(new)}. To split all pictures "
                f"anew, delete '{self.split_file}'."
            )

    def _readable(self, root: Path, labels: Mapping[str, int]) -> FileSamples:
        """The pictures; where they are to be skipped, without those that cannot be read."""
        names = list(labels)
        if self.on_corrupt == "skip":
            bad, kept = unreadable(root, names)
            names = [name for name in names if name not in bad]
            if bad:
                rank_zero_warn(f"Left out, for they cannot be read: {some(list(bad))}.")
            if not kept:
                rank_zero_info(f"'{root}' cannot be written to: each run reads all pictures first.")
        return FileSamples(root, names, [labels[name] for name in names])

    def _refuse_empty(self, samples: FileSamples) -> None:
        found = set(samples.labels)
        empty = [name for index, name in enumerate(self.classes) if index not in found]
        if empty:
            raise ValueError(
                f"Of {some(empty)} no picture is left to train on: those in "
                f"'{self.layout.folders['train']}' cannot be read, or are newer than the split in "
                f"'{self.split_file}', which can be deleted."
            )


def refuse_unopenable(samples: FileSamples) -> None:
    """Name all the files that are no pictures, before the run starts."""
    bad = unopenable(samples.root, samples.names)
    if bad:
        first = next(iter(bad))
        raise OSError(
            f"In '{samples.root}', {some(list(bad))} cannot be read as pictures; of the first: "
            f"{bad[first]}. Repair or remove them, or set `on_corrupt` to 'skip'."
        )


def tell_strays(strays: Sequence[str]) -> None:
    """Say which files are no pictures that this package reads."""
    if strays:
        rank_zero_info(f"Not used, for they are no pictures of a class: {some(strays)}.")


def some(names: Sequence[str]) -> str:
    """How many there are, and the first few.

    >>> some(["ants", "bees"])
    "2 ('ants', 'bees')"
    """
    shown = ", ".join(map(repr, names[:SHOWN]))
    return f"{len(names)} ({shown}{', …' if len(names) > SHOWN else ''})"

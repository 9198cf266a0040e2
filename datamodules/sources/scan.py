"""List the images in the folders of a dataset, and find the unreadable ones."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from .class_folders import Listing, list_classes, list_images, refuse_shared
from .duplicates import copies_warning, find_copies
from .layout import Layout, check_folder
from .skipped import report_unused, summary
from .unreadable import find_damaged, find_unreadable

MAX_REASONS = 5  # in one message


class ImageFolders:
    """Lists each folder, and checks it for unreadable images, once.

    Args:
        layout: The folder of each part of the data.
        predict_dir: A folder for the part `predict`.
        on_corrupt: `raise` an error for unreadable images, or `skip` them.
    """

    def __init__(self, layout: Layout, *, predict_dir: Path | None, on_corrupt: str) -> None:
        self.root = layout.root
        self.folders: dict[str, Path] = {str(split): at for split, at in layout.folders.items()}
        if predict_dir is not None:
            self.folders["predict"] = predict_dir
        self.on_corrupt = on_corrupt
        self._listings: dict[str, Listing] = {}
        self._bad: dict[str, Mapping[str, str]] = {}

    def root_of(self, part: str) -> Path:
        """The folder that the names of a part are relative to."""
        return self.folders["predict"] if part == "predict" else self.root

    def listing(self, part: str) -> Listing:
        """The images in the folder of a part; unused files are reported."""
        if part not in self._listings:
            folder = self.folders[part]
            check_folder(folder)
            list_all = list_images if part == "predict" else list_classes
            self._listings[part] = list_all(folder, root=self.root_of(part))
            report_unused(
                folder,
                self._listings[part].unused,
                has_classes=bool(self._listings[part].classes),
            )
        return self._listings[part]

    def readable(self, part: str, names: Sequence[str]) -> list[str]:
        """The names of images that are not skipped.

        Raises:
            OSError: Something with the suffix of an image is no readable file.
        """
        if self.on_corrupt == "skip" or self.listing(part).unused.problems:
            self.check([part])
        bad = self._bad.get(part, {})
        return [name for name in names if name not in bad]

    def check(self, parts: Iterable[str]) -> None:
        """Report all unreadable images in the folders of these parts, in one message.

        Raises:
            OSError: There are unreadable images, and `on_corrupt` is `raise`.
        """
        found, unwritable = dict[str, Mapping[str, str]](), list[Path]()
        for part in parts:
            if part not in self._bad:
                listing, root = self.listing(part), self.root_of(part)
                if self.on_corrupt == "raise":
                    bad = find_damaged(root, list(listing.images))
                else:
                    bad, is_recorded = find_unreadable(root, list(listing.images))
                    unwritable += [] if is_recorded else [root]
                found[part] = dict(sorted({**listing.unused.problems, **bad}.items()))
        by_folder = {self.folders[part]: bad for part, bad in found.items() if bad}
        if by_folder and self.on_corrupt == "raise":
            raise OSError(
                f"{list_unreadable(by_folder)} cannot be read as pictures: {reasons(by_folder)}."
                " Repair or remove them, or set `on_corrupt` to 'skip'."
            )
        if by_folder:
            unreadable_names = list_unreadable(by_folder)
            rank_zero_warn(
                f"Left out, because they cannot be read: {unreadable_names}. {reasons(by_folder)}."
            )
        for root in dict.fromkeys(unwritable):
            rank_zero_info(f"'{root}' cannot be written to: each run reads all pictures first.")
        self._bad |= found

    def check_shared_files(self, divided: Mapping[str, Sequence[str]]) -> None:
        """Refuse a file that is in two parts or classes by links, and warn of such copies.

        Args:
            divided: The names in each part of the training folder.

        Raises:
            ValueError: A file is in two parts or classes.
        """
        listings = [self.listing(part) for part in self.folders if part != "predict"]
        parts = {
            name: part
            for part in self.folders
            if part != "predict"
            for name in self.listing(part).images
        }
        images = {k: v for each in listings for k, v in each.images.items()}
        refuse_shared(parts, images, "part of the data")
        classes = {name: label for each in listings for name, label in each.classes.items()}
        parts |= {name: part for part, names in divided.items() for name in names}
        copies = find_copies(self.root, list(images))
        if warning := copies_warning(copies, parts=parts, classes=classes):
            rank_zero_warn(warning)


def list_unreadable(bad: Mapping[Path, Mapping[str, str]]) -> str:
    """The unreadable images, by folder."""
    return ", ".join(f"{summary(names)} in '{folder}'" for folder, names in bad.items())


def reasons(bad: Mapping[Path, Mapping[str, str]]) -> str:
    """The different reasons, each with its first file."""
    first: dict[str, str] = {}
    for folder, problems in bad.items():
        for name, problem in problems.items():
            first.setdefault(problem.replace(name, "").replace(str(folder), ""), name)
    lines = [f"{name!r}: {problem_of(bad, name)}" for name in list(first.values())[:MAX_REASONS]]
    return "; ".join(lines) + ("; …" if len(first) > MAX_REASONS else "")


def problem_of(bad: Mapping[Path, Mapping[str, str]], name: str) -> str:
    """The problem of one file."""
    return next(problems[name] for problems in bad.values() if name in problems)

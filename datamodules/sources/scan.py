"""The folders of a data set: what is in each, and what of it cannot be read."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from .class_folders import Listing, list_classes, list_pictures, refuse_shared
from .duplicates import copies_warning, find_copies
from .layout import Layout, check_folder
from .skipped import some, tell_left_out
from .unreadable import unopenable, unreadable

REASONS = 5  # so many different ones are told


class PictureFolders:
    """Each folder is listed, and looked at for what cannot be read, once.

    Args:
        layout: The folder of each part of the data.
        predict_dir: A folder for the part `predict`.
        on_corrupt: What is done about pictures that cannot be read: `raise` or `skip`.
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
        """The folder below which the names of a part are paths."""
        return self.folders["predict"] if part == "predict" else self.root

    def listing(self, part: str) -> Listing:
        """What the folder of a part holds; what is left out of it is told."""
        if part not in self._listings:
            folder = self.folders[part]
            check_folder(folder)
            list_all = list_pictures if part == "predict" else list_classes
            self._listings[part] = list_all(folder, root=self.root_of(part))
            tell_left_out(
                folder,
                self._listings[part].left_out,
                has_classes=bool(self._listings[part].classes),
            )
        return self._listings[part]

    def readable(self, part: str, names: Sequence[str]) -> list[str]:
        """Those of a folder's pictures that are not to be skipped.

        Raises:
            OSError: Something in the folder is called a picture and cannot be one.
        """
        if self.on_corrupt == "skip" or self.listing(part).left_out.problems:
            self.check([part])
        bad = self._bad.get(part, {})
        return [name for name in names if name not in bad]

    def check(self, parts: Iterable[str]) -> None:
        """Name all that cannot be read in the folders of these parts, in one message.

        Raises:
            OSError: There is something, and it is not to be skipped.
        """
        found, unwritable = dict[str, Mapping[str, str]](), list[Path]()
        for part in parts:
            if part not in self._bad:
                listing, root = self.listing(part), self.root_of(part)
                if self.on_corrupt == "raise":
                    bad = unopenable(root, list(listing.pictures))
                else:
                    bad, is_kept = unreadable(root, list(listing.pictures))
                    unwritable += [] if is_kept else [root]
                found[part] = dict(sorted({**listing.left_out.problems, **bad}.items()))
        told = {self.folders[part]: bad for part, bad in found.items() if bad}
        if told and self.on_corrupt == "raise":
            raise OSError(
                f"{where_and_why(told)} cannot be read as pictures: {reasons(told)}. Repair or "
                "remove them, or set `on_corrupt` to 'skip'."
            )
        if told:
            rank_zero_warn(
                f"Left out, for they cannot be read: {where_and_why(told)}. {reasons(told)}."
            )
        for root in dict.fromkeys(unwritable):
            rank_zero_info(f"'{root}' cannot be written to: each run reads all pictures first.")
        self._bad |= found

    def refuse_links_and_warn_of_copies(self, divided: Mapping[str, Sequence[str]]) -> None:
        """See that no file is in two parts of the data or in two classes.

        Args:
            divided: The names in each part of the training folder.

        Raises:
            ValueError: One file is, by links.
        """
        listings = [self.listing(part) for part in self.folders if part != "predict"]
        parts = {
            name: part
            for part in self.folders
            if part != "predict"
            for name in self.listing(part).pictures
        }
        pictures = {k: v for each in listings for k, v in each.pictures.items()}
        refuse_shared(parts, pictures, "part of the data")
        classes = {name: label for each in listings for name, label in each.classes.items()}
        parts |= {name: part for part, names in divided.items() for name in names}
        copies = find_copies(self.root, list(pictures))
        if warning := copies_warning(copies, parts=parts, classes=classes):
            rank_zero_warn(warning)


def where_and_why(bad: Mapping[Path, Mapping[str, str]]) -> str:
    """What cannot be read, by folder."""
    return ", ".join(f"{some(names)} in '{folder}'" for folder, names in bad.items())


def reasons(bad: Mapping[Path, Mapping[str, str]]) -> str:
    """Why, each reason with the first file of which it is told."""
    first: dict[str, str] = {}
    for folder, problems in bad.items():
        for name, problem in problems.items():
            first.setdefault(problem.replace(name, "").replace(str(folder), ""), name)
    told = [f"{name!r}: {bad_of(bad, name)}" for name in list(first.values())[:REASONS]]
    return "; ".join(told) + ("; …" if len(first) > REASONS else "")


def bad_of(bad: Mapping[Path, Mapping[str, str]], name: str) -> str:
    """What is wrong with one file."""
    return next(problems[name] for problems in bad.values() if name in problems)

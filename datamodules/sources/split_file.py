"""A split file: the same split on every rank and after every resume."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_finetune.files.atomic_write import atomic_write_text
from lit_finetune.files.json import read_json

from .portable_names import from_text, json_text, to_text
from .skipped import summary
from .stratified_split import split_fractions, stratified_split


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitPlan:
    """The shares and the seed of a split."""

    val_split: float
    test_split: float
    seed: int

    def fractions(self) -> dict[str, float]:
        """The share of each part that is not empty."""
        return split_fractions(val_split=self.val_split, test_split=self.test_split)

    def file_name(self) -> str:
        """The default name of the split file."""
        share = f"val{self.val_split:g}-test{self.test_split:g}"
        return f".lit_finetune_split-{share}-seed{self.seed}.json"


def split_by_class(
    classes: Mapping[str, str], plan: SplitPlan, *, copies: Sequence[Sequence[str]] = ()
) -> dict[str, list[str]]:
    """The images of each part, by a seeded split within each class.

    Args:
        classes: The class of each image.
        plan: The shares and the seed.
        copies: Groups of images that stay in one part; the class of a group is that of its first.
    """
    first = {name: group[0] for group in copies for name in group}
    groups: dict[str, list[str]] = {}
    for name in classes:
        groups.setdefault(first.get(name, name), []).append(name)
    firsts, fractions = list(groups), plan.fractions()
    labels = [classes[name] for name in firsts]
    try:
        parts = stratified_split(labels, list(fractions.values()), seed=plan.seed)
    except ValueError as error:
        hint = " Copies of a file count as one picture." if len(firsts) < len(classes) else ""
        raise ValueError(f"{error}{hint}") from error
    order = {name: index for index, name in enumerate(classes)}
    return {
        split: sorted((name for i in part for name in groups[firsts[i]]), key=order.__getitem__)
        for split, part in zip(fractions, parts, strict=True)
    }


def write_split(path: Path, parts: Mapping[str, Sequence[str]], plan: SplitPlan) -> None:
    """Write a split file, completely or not at all.

    Raises:
        PermissionError: The folder is not writable.
    """
    try:
        files = {split: list(map(to_text, names)) for split, names in parts.items()}
        write_json(path, {**plan_dict(plan), "files": files})
    except OSError as error:
        raise PermissionError(
            f"The split of the pictures cannot be kept in '{path}': {error}. Every process and "
            "every resumed run reads it from there, so give a file in a writable folder: "
            "`split_file`."
        ) from error


def read_split(path: Path, plan: SplitPlan) -> dict[str, list[str]]:
    """Read the images of each part from a split file.

    Raises:
        ValueError: The file is no split, was made with other options, or names an image twice.
    """
    try:
        stored = read_json(path)
        files = stored.pop("files").items()
        if not all(isinstance(names, list) for _, names in files):
            raise TypeError("The names of a part are no list.")
        parts = {split: list(map(from_text, names)) for split, names in files}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"'{path}' holds no split. Delete it, and the pictures are split again."
        ) from error
    if stored != plan_dict(plan):
        raise ValueError(
            f"'{path}' was made with {format_options(stored)}, but this run has "
            f"{format_options(plan_dict(plan))}. Give those again, or name another `split_file`."
        )
    if set(parts) != set(plan.fractions()):
        raise ValueError(
            f"'{path}' has the parts {summary(list(parts))}, and this run has"
            f" {summary(list(plan.fractions()))}. Delete it, and the pictures are split again."
        )
    _refuse_repeated(parts, path)
    return parts


def _refuse_repeated(parts: Mapping[str, Sequence[str]], path: Path) -> None:
    """Refuse a split that names an image twice, for example for training and validation."""
    parts_of: dict[str, list[str]] = {}
    for part, names in parts.items():
        for name in names:
            parts_of.setdefault(name, []).append(part)
    twice = {name: found for name, found in parts_of.items() if len(found) > 1}
    if twice:
        name, found = next(iter(twice.items()))
        where = " and ".join(dict.fromkeys(found))
        raise ValueError(
            f"'{path}' names {summary(list(twice))} more than once, {name!r} in {where}. Correct"
            " it, or delete it, and the pictures are split again."
        )


def plan_dict(plan: SplitPlan) -> dict[str, Any]:
    """The options of a plan, as stored in the file."""
    return {"val_split": plan.val_split, "test_split": plan.test_split, "seed": plan.seed}


def format_options(values: Mapping[str, Any]) -> str:
    """Options in a message.

    >>> format_options({"val_split": 0.2, "seed": 0})
    'val_split=0.2, seed=0'
    """
    return ", ".join(f"{name}={value}" for name, value in values.items())


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON file, completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, json_text(data))

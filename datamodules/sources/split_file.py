"""A split on disk: the same on every rank and after every resume."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_finetune.files.atomic_write import atomic_write_text
from lit_finetune.files.json import read_json

from .portable_names import from_text, json_text, to_text
from .skipped import some
from .splits import split_fractions, stratified_split


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitPlan:
    """How the training pictures are divided."""

    val_split: float
    test_split: float
    seed: int

    def fractions(self) -> dict[str, float]:
        """The share of each part that there is."""
        return split_fractions(val_split=self.val_split, test_split=self.test_split)

    def file_name(self) -> str:
        """What the file is called beside the pictures."""
        share = f"val{self.val_split:g}-test{self.test_split:g}"
        return f".lit_finetune_split-{share}-seed{self.seed}.json"


def split_by_class(
    classes: Mapping[str, str], plan: SplitPlan, *, copies: Sequence[Sequence[str]] = ()
) -> dict[str, list[str]]:
    """The pictures of each part, by a seeded split within each class.

    Args:
        classes: The class of each picture.
        plan: How they are divided.
        copies: Groups of pictures that stay together; the first of a group stands for all.
    """
    first = {name: group[0] for group in copies for name in group}
    groups: dict[str, list[str]] = {}
    for name in classes:
        groups.setdefault(first.get(name, name), []).append(name)
    alone, fractions = list(groups), plan.fractions()
    labels = [classes[name] for name in alone]
    try:
        parts = stratified_split(labels, list(fractions.values()), seed=plan.seed)
    except ValueError as error:
        counted = " Copies of a file count as one picture." if len(alone) < len(classes) else ""
        raise ValueError(f"{error}{counted}") from error
    place = {name: index for index, name in enumerate(classes)}
    return {
        split: sorted((name for i in part for name in groups[alone[i]]), key=place.__getitem__)
        for split, part in zip(fractions, parts, strict=True)
    }


def write_split(path: Path, parts: Mapping[str, Sequence[str]], plan: SplitPlan) -> None:
    """Write a split, at once or not at all.

    Raises:
        PermissionError: the folder cannot be written to.
    """
    try:
        files = {split: list(map(to_text, names)) for split, names in parts.items()}
        write_json(path, {**plan_dict(plan), "files": files})
    except OSError as error:
        raise PermissionError(
            f"The split of the pictures cannot be kept in '{path}': {error}. Every process and "
            "every resumed run reads it from there, so name a place that can be written to: "
            "`split_file`."
        ) from error


def read_split(path: Path, plan: SplitPlan) -> dict[str, list[str]]:
    """The pictures of each part, as they were written.

    Raises:
        ValueError: the file is no split, was made by another plan, or names a picture twice.
    """
    try:
        stored = read_json(path)
        files = stored.pop("files").items()
        if not all(isinstance(names, list) for _, names in files):
            raise TypeError("The names of a part are no list.")
        parts = {split: list(map(from_text, names)) for split, names in files}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"'{path}' holds no split. Delete it, and the pictures are divided anew."
        ) from error
    if stored != plan_dict(plan):
        raise ValueError(
            f"'{path}' was made with {options(stored)}, but this run has "
            f"{options(plan_dict(plan))}. Give those again, or name another `split_file`."
        )
    if set(parts) != set(plan.fractions()):
        raise ValueError(
            f"'{path}' has the parts {some(list(parts))}, and this run has"
            f" {some(list(plan.fractions()))}. Delete it, and the pictures are divided anew."
        )
    _refuse_repeated(parts, path)
    return parts


def _refuse_repeated(parts: Mapping[str, Sequence[str]], path: Path) -> None:
    """Refuse a split that names a picture twice: it would be trained on and validated with."""
    places: dict[str, list[str]] = {}
    for part, names in parts.items():
        for name in names:
            places.setdefault(name, []).append(part)
    twice = {name: found for name, found in places.items() if len(found) > 1}
    if twice:
        name, found = next(iter(twice.items()))
        where = " and ".join(dict.fromkeys(found))
        raise ValueError(
            f"'{path}' names {some(list(twice))} more than once, {name!r} in {where}. Correct it,"
            " or delete it, and the pictures are divided anew."
        )


def plan_dict(plan: SplitPlan) -> dict[str, Any]:
    """A plan as it is written."""
    return {"val_split": plan.val_split, "test_split": plan.test_split, "seed": plan.seed}


def options(values: Mapping[str, Any]) -> str:
    """Options in a message.

    >>> options({"val_split": 0.2, "seed": 0})
    'val_split=0.2, seed=0'
    """
    return ", ".join(f"{name}={value}" for name, value in values.items())


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a file so that who reads it sees all of it or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, json_text(data))

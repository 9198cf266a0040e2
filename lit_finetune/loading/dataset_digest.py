"""Which pictures a dataset has, as a short name: a run that goes on needs the same ones."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset

from lit_finetune.files.fingerprint import digest

_MOST = 1024
"""So many pictures are looked at, evenly spread; of all others the names and labels are."""


def dataset_digest(dataset: Any) -> str | None:
    """A name for the pictures of a dataset and their labels, wherever their folder is.

    None where the dataset does not tell: it is neither one of ours nor of the kinds of torch and
    torchvision that list their files or hold their tensors.
    """
    if isinstance(dataset, IterableDataset):
        return None
    parts = _parts(dataset)
    return None if parts is None else digest(parts)


def check_dataset(saved: object, now: str | None, *, batches: int) -> None:
    """Refuse to go on amid an epoch of other pictures; say it where an epoch begins with them.

    Args:
        saved: Of the run that wrote the checkpoint; None if it did not say.
        now: Of the run that resumes; None if nobody can tell.
        batches: How many were done of the epoch.

    Raises:
        ValueError: Other pictures would be trained on twice, or not at all.
    """
    if saved is None or now is None or saved == now:
        return
    if not batches:
        warnings.warn(
            "The run goes on with other training pictures than the checkpoint's run had: files,"
            " labels or contents have changed.",
            stacklevel=2,
        )
        return
    raise ValueError(
        "The checkpoint was written amid an epoch of other training pictures: files, labels or"
        f" contents have changed since then, so the {batches} batches that were done of the epoch"
        " are not the same ones here. Resume with the same pictures, or from a checkpoint of an"
        " epoch's end."
    )


def _parts(dataset: Any) -> list[Any] | None:
    held = {**getattr(dataset, "__dict__", {})}
    if "dataset" in held and "indices" in held:  # torch's Subset
        inner = dataset_digest(dataset.dataset)
        return None if inner is None else [inner, np.asarray(dataset.indices)]
    if isinstance(held.get("datasets"), list):  # torch's ConcatDataset
        several = list(map(dataset_digest, dataset.datasets))
        return None if None in several else several
    if "tensors" in held:
        return [_some_rows(tensor) for tensor in dataset.tensors]
    if "data" in held and "targets" in held:  # torchvision's CIFAR and MNIST
        return [_some_rows(dataset.data), np.asarray(dataset.targets)]
    return _parts_of_samples(dataset, held.get("samples"))


def _parts_of_samples(dataset: Any, samples: Any) -> list[Any] | None:
    if hasattr(samples, "names") and hasattr(samples, "labels"):  # ours
        listed = ["\n".join(samples.names), np.asarray(samples.labels)]
        if hasattr(samples, "root"):
            return [*listed, _sizes([Path(samples.root, name) for name in _spread(samples.names)])]
        images = getattr(samples, "images", None)
        return None if images is None else [*listed, _some_rows(images)]
    if isinstance(samples, list) and samples and isinstance(samples[0], tuple):  # ImageFolder
        root = getattr(dataset, "root", "")
        names = [os.path.relpath(path, root) for path, *_ in samples]
        labels = np.asarray([label for _, label, *_ in samples])
        return ["\n".join(names), labels, _sizes([path for path, *_ in _spread(samples)])]
    return None


def _spread(items: Sequence[Any]) -> list[Any]:
    kept = min(len(items), _MOST)
    return [items[place * len(items) // kept] for place in range(kept)]


def _some_rows(values: Any) -> list[Any]:
    return [tuple(values.shape), str(values.dtype), values[_spread(range(len(values)))]]


def _sizes(paths: Sequence[str | Path]) -> list[int]:
    return [os.stat(path).st_size if os.path.exists(path) else -1 for path in paths]

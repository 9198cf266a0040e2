"""A digest of a data set's images, to check that a resumed run has the same ones."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset

from lit_finetune.files.fingerprint import digest

_MAX_IMAGES = 1024
"""The number of images whose contents are hashed, evenly spread; of others, names and labels."""


def dataset_digest(dataset: Any) -> str | None:
    """A digest of the images and labels of a data set, independent of its folder.

    None for data sets other than ours, and those of torch and torchvision that list their files or
    hold tensors.
    """
    if isinstance(dataset, IterableDataset):
        return None
    parts = _parts(dataset)
    return None if parts is None else digest(parts)


def check_dataset(saved: object, current: str | None, *, batches: int) -> None:
    """Refuse to resume within an epoch of other images; warn at the start of an epoch.

    Args:
        saved: The digest in the checkpoint; None if it has none.
        current: The digest of the run that resumes; None if unknown.
        batches: The number of batches of the epoch that were done.

    Raises:
        ValueError: Images would be trained on twice, or not at all.
    """
    if saved is None or current is None or saved == current:
        return
    if not batches:
        warnings.warn(
            "The run resumes with other training pictures than the checkpoint's run had: files,"
            " labels or contents have changed.",
            stacklevel=2,
        )
        return
    raise ValueError(
        "The checkpoint was written within an epoch of other training pictures: files, labels or"
        f" contents have changed since then, so the {batches} batches that were done of the epoch"
        " are not the same ones here. Resume with the same pictures, or from a checkpoint of an"
        " epoch's end."
    )


def _parts(dataset: Any) -> list[Any] | None:
    attributes = {**getattr(dataset, "__dict__", {})}
    if "dataset" in attributes and "indices" in attributes:  # torch's Subset
        digest_of_inner = dataset_digest(dataset.dataset)
        return None if digest_of_inner is None else [digest_of_inner, np.asarray(dataset.indices)]
    if isinstance(attributes.get("datasets"), list):  # torch's ConcatDataset
        digests = list(map(dataset_digest, dataset.datasets))
        return None if None in digests else digests
    if "tensors" in attributes:
        return [_some_rows(tensor) for tensor in dataset.tensors]
    if "data" in attributes and "targets" in attributes:  # torchvision's CIFAR and MNIST
        return [_some_rows(dataset.data), np.asarray(dataset.targets)]
    return _parts_of_samples(dataset, attributes.get("samples"))


def _parts_of_samples(dataset: Any, samples: Any) -> list[Any] | None:
    if hasattr(samples, "names") and hasattr(samples, "labels"):  # ours
        parts = ["\n".join(samples.names), np.asarray(samples.labels)]
        if hasattr(samples, "root"):
            return [*parts, _sizes([Path(samples.root, name) for name in _spread(samples.names)])]
        images = getattr(samples, "images", None)
        return None if images is None else [*parts, _some_rows(images)]
    if isinstance(samples, list) and samples and isinstance(samples[0], tuple):  # ImageFolder
        root = getattr(dataset, "root", "")
        names = [os.path.relpath(path, root) for path, *_ in samples]
        labels = np.asarray([label for _, label, *_ in samples])
        return ["\n".join(names), labels, _sizes([path for path, *_ in _spread(samples)])]
    return None


def _spread(items: Sequence[Any]) -> list[Any]:
    count = min(len(items), _MAX_IMAGES)
    return [items[index * len(items) // count] for index in range(count)]


def _some_rows(values: Any) -> list[Any]:
    return [tuple(values.shape), str(values.dtype), values[_spread(range(len(values)))]]


def _sizes(paths: Sequence[str | Path]) -> list[int]:
    return [os.stat(path).st_size if os.path.exists(path) else -1 for path in paths]

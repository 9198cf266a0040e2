"""What a checkpoint of a FinetuneClassifier says of itself beside weights and arguments."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_finetune.checkpoints.sharded import plain_part
from lit_finetune.weights.files import read_content

KEY = "lit_finetune"
"""Where a checkpoint holds it."""
MOST_CLASSES = 10**7
"""A head of more outputs is no head."""


def classes_in(content: Any) -> list[str] | None:
    """The class names that a checkpoint holds; None where it holds none, or is not of ours.

    >>> classes_in({"lit_finetune": {"classes": ["ant", "bee"]}, "state_dict": {}})
    ['ant', 'bee']

    Raises:
        ValueError: What it holds as class names is something else.
    """
    own = content.get(KEY) if isinstance(content, Mapping) else None
    names = own.get("classes") if isinstance(own, Mapping) else None
    if names is None:
        return None
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not is_list or len(set(names)) < len(names):
        raise ValueError(
            f"The checkpoint's class names are no list of different names: {str(names)[:80]}. It is"
            " damaged, or was changed."
        )
    return list(names)


def num_classes_in(content: Mapping[str, Any]) -> int | None:
    """How many classes a checkpoint's head tells apart, by its hyper-parameters."""
    hparams = content.get("hyper_parameters")
    count = hparams.get("num_classes") if isinstance(hparams, Mapping) else None
    return count if isinstance(count, int) and 1 < count < MOST_CLASSES else None


def read_classes(path: str | Path) -> list[str] | None:
    """The class names in a weights file, or in a folder of shards, where it is of ours.

    Args:
        path: It has been read as weights before.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return classes_in(plain_part(path, skip_data=True))
    return classes_in(read_content(path, skip_data=True)) if _speaks_of_us(path) else None


def _speaks_of_us(path: Path) -> bool:
    """Whether a file of torch's holds our key: what lies beside the tensors is small."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.split("/")[-1] == "data.pkl"]
        return any(KEY.encode() in archive.read(name) for name in names)

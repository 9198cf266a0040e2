"""The classes in a checkpoint of a FinetuneClassifier."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_finetune.checkpoints.sharded import plain_part
from lit_finetune.weights.files import read_content

CHECKPOINT_KEY = "lit_finetune"
"""The key of our own data in a checkpoint."""
UNTRAINED_KEY = "untrained_head"
"""The key of the mark of an untrained head in our own data: "random", "given", or None."""
MAX_CLASSES = 10**7
"""The limit of a head's outputs in a checkpoint that is not trusted."""


def classes_in(content: Any) -> list[str] | None:
    """The class names in a checkpoint; None if it has none, or is not one of ours.

    >>> classes_in({"lit_finetune": {"classes": ["ant", "bee"]}, "state_dict": {}})
    ['ant', 'bee']

    Raises:
        ValueError: The checkpoint's class names are not a list of different names.
    """
    own = content.get(CHECKPOINT_KEY) if isinstance(content, Mapping) else None
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
    """The number of classes in a checkpoint's hyper-parameters; None if it has none."""
    hparams = content.get("hyper_parameters")
    count = hparams.get("num_classes") if isinstance(hparams, Mapping) else None
    return count if isinstance(count, int) and 1 < count < MAX_CLASSES else None


def untrained_head_in(content: Any) -> str | None:
    """The mark of an untrained head in a checkpoint; None if it has none.

    >>> untrained_head_in({"lit_finetune": {"untrained_head": "random"}})
    'random'
    """
    own = content.get(CHECKPOINT_KEY) if isinstance(content, Mapping) else None
    mark = own.get(UNTRAINED_KEY) if isinstance(own, Mapping) else None
    return mark if isinstance(mark, str) else None


def read_own(path: str | Path) -> tuple[list[str] | None, str | None]:
    """The class names in a weights file or a folder of shards, and whether its head is untrained.

    Both are None if it is not one of ours.

    Args:
        path: A file or folder that was read as weights before.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        content = plain_part(path, skip_data=True)
    elif _has_own_key(path):
        content = read_content(path, skip_data=True)
    else:
        return None, None
    return classes_in(content), untrained_head_in(content)


def _has_own_key(path: Path) -> bool:
    """Whether a file of `torch.save` has our key: searches the pickle, which is small."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.split("/")[-1] == "data.pkl"]
        return any(CHECKPOINT_KEY.encode() in archive.read(name) for name in names)

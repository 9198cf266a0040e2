"""Check that the index of packed images is one that `write_shards` writes."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

INDEX = "index.json"
FIELDS = ["image", "index", "label"]
"""The fields of a sample."""
_UNUSED = ("compression", "ipc_compression", "encryption", "chunk_size")
"""The options of `litdata` that `write_shards` does not use."""


def index_problem(index: Mapping[str, Any]) -> str:
    """What is wrong with the chunks and the config of an index; empty if nothing is.

    >>> index_problem({"config": {}, "chunks": [{"chunk_size": True, "chunk_bytes": 5}]})
    '`chunk_size` is True'
    """
    config, chunks = index["config"], index["chunks"]
    for key in ("chunk_size", "chunk_bytes"):
        wrong = [each.get(key) for each in chunks if not _is_count(each.get(key))]
        if wrong:
            return f"`{key}` is {wrong[0]!r:.100}"
    if not chunks:
        return "`chunks` is empty"
    used = [key for key in _UNUSED if config.get(key) is not None]
    if used:
        return f"`{used[0]}` is {config[used[0]]!r:.100}"
    if not _is_spec(config.get("data_spec")):
        return f"`data_spec` is {config.get('data_spec')!r:.100}"
    return ""


def chunk_problem(chunks: Sequence[Mapping[str, Any]], folder: Path | None, num_images: int) -> str:
    """What does not fit to the chunks of an index; empty if all does.

    Args:
        chunks: The chunks of an index without problems.
        folder: The folder of the chunks, if it is a local one.
        num_images: The number of labels.
    """
    count = sum(chunk["chunk_size"] for chunk in chunks)
    if count != num_images:
        return f"it has {count} pictures, and there are {num_images} labels"
    for chunk in chunks if folder else ():
        path = Path(folder or "", chunk["filename"])
        if not path.is_file():
            return f"'{path}' is missing"
        if (size := path.stat().st_size) < chunk["chunk_bytes"]:
            return f"'{path}' has {size} bytes, of {chunk['chunk_bytes']}"
    return ""


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**63


def _is_spec(text: Any) -> bool:
    """Whether a text is the `data_spec` of torch's pytree for a dict of the fields."""
    try:
        _, spec = json.loads(text)
        leaves = [leaf["type"] for leaf in spec["children_spec"]]
        fields = json.loads(spec["context"])
    except (ValueError, TypeError, LookupError, RecursionError):
        return False
    return spec.get("type") == "builtins.dict" and fields == FIELDS and leaves == [None] * 3

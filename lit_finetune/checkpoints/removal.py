"""Decide which checkpoint files a run may remove: only those that it wrote.

A checkpoint lists the paths of earlier ones. It may not be trusted, so a path is only removed if it
is in the run's own folder and has the run's id.
"""

import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lit_finetune.checkpoints.sharded import plain_part

RUN_ID = "run_id"
"""The key of the run's unique id in a callback's state."""
_PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")
_SCORES = ("best_model_score", "current_score", "kth_value")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")  # at least two letters: `C:` is a drive


def is_local(path: str) -> bool:
    """Whether a path is on the local file system, and not a URL for fsspec.

    >>> [is_local(path) for path in ("a/b.ckpt", "local://a", "file:/a", "zip://a::s3://b")]
    [True, False, False, False]
    """
    return not _SCHEME.match(path) and "::" not in path


def is_directly_in(path: str, folder: str) -> bool:
    """Whether a path is a plain name directly in a folder.

    >>> [is_directly_in(path, "kept") for path in ("kept/a.ckpt", "kept/../a.ckpt", "a/b")]
    [True, False, False]
    """
    if not is_local(path):
        return path.rpartition("/")[0] == folder.rstrip("/")
    parent, name = os.path.split(path)
    return name not in ("", ".", "..") and os.path.realpath(parent) == os.path.realpath(folder)


def is_written_by(path: str, folder: str, *, state_key: str, run_id: str) -> bool:
    """Whether a file or a folder of shards is a checkpoint that a callback of a run wrote.

    Args:
        path: The path in a checkpoint.
        folder: The folder that the callback writes to.
        state_key: The callback's `state_key`.
        run_id: The run's id, which is random.
    """
    if not run_id or not is_local(path) or not is_directly_in(path, folder) or os.path.islink(path):
        return False
    if not os.path.isfile(path) and not os.path.isdir(path):  # reading a pipe would block
        return False
    try:
        state = plain_part(path, skip_data=True)["callbacks"][state_key]
        paths = [*state["best_k_models"], state["best_model_path"], state["last_model_path"]]
        names = {Path(each).name for each in paths}
    # On files that are no checkpoints torch raises almost any error.
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, EOFError):
        return False
    except pickle.UnpicklingError:
        return False
    return bool(state.get(RUN_ID) == run_id and Path(path).name in names)


def validate_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """Validate the state of Lightning's `ModelCheckpoint` in a checkpoint; add missing keys.

    Raises:
        ValueError: The state has another form.
    """
    scores = state.get("best_k_models", {})
    paths = [state.get(key, "") for key in _PATHS]
    if (
        not isinstance(scores, dict)
        or not all(isinstance(path, str) for path in (*paths, *scores))
        or not all(map(_is_score, scores.values()))
        or not all(_is_score(state[key]) for key in _SCORES if state.get(key) is not None)
    ):
        raise ValueError(
            "The checkpoint's list of earlier checkpoints is damaged: start a new run from its"
            " weights (`weights`)."
        )
    return {"best_model_score": None, **dict.fromkeys(_PATHS, ""), **state}


def _is_score(value: object) -> bool:
    return isinstance(value, float | int) or (isinstance(value, Tensor) and value.numel() == 1)

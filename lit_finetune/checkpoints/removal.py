"""Which checkpoint files a run may remove: those that it wrote, whatever a checkpoint says of them.

A checkpoint lists earlier ones by their paths. It may come from somebody else, so such a path is no
more than a claim: it is believed of a file in the run's own folder that bears the mark of the run.
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
"""Under this key a callback's state holds what tells one run from all others."""
_PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")
_SCORES = ("best_model_score", "current_score", "kth_value")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")  # of two letters and more: `C:` is a drive


def is_local(path: str) -> bool:
    """Whether a path is one of this file system, and no address that fsspec would follow.

    >>> [is_local(path) for path in ("a/b.ckpt", "local://a", "file:/a", "zip://a::s3://b")]
    [True, False, False, False]
    """
    return not _SCHEME.match(path) and "::" not in path


def is_in(path: str, folder: str) -> bool:
    """Whether a path names something directly in a folder, by a plain name.

    >>> is_in("kept/a.ckpt", "kept"), is_in("kept/../a.ckpt", "kept"), is_in("a/b", "kept")
    (True, False, False)
    """
    if not is_local(path):
        return path.rpartition("/")[0] == folder.rstrip("/")
    above, name = os.path.split(path)
    return name not in ("", ".", "..") and os.path.realpath(above) == os.path.realpath(folder)


def was_written_by(path: str, folder: str, *, state_key: str, run_id: str) -> bool:
    """Whether a file or a folder of shards is a checkpoint that a callback of a run wrote there.

    Args:
        path: What a checkpoint says of it.
        folder: The one that the callback writes to.
        state_key: The callback's.
        run_id: The run's, which nobody can guess.
    """
    if not run_id or not is_local(path) or not is_in(path, folder) or os.path.islink(path):
        return False
    if not os.path.isfile(path) and not os.path.isdir(path):  # a pipe would be waited for
        return False
    try:
        state = plain_part(path, skip_data=True)["callbacks"][state_key]
        listed = [*state["best_k_models"], state["best_model_path"], state["last_model_path"]]
        names = {Path(each).name for each in listed}
    # What is no checkpoint makes torch raise nearly anything.
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, EOFError):
        return False
    except pickle.UnpicklingError:
        return False
    return bool(state.get(RUN_ID) == run_id and Path(path).name in names)


def checked_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of earlier ones, if it is made as Lightning's `ModelCheckpoint` does.

    Raises:
        ValueError: It is not.
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
            "The checkpoint's list of earlier checkpoints is damaged: start anew from its weights"
            " (`weights`)."
        )
    return {"best_model_score": None, **dict.fromkeys(_PATHS, ""), **state}


def _is_score(value: object) -> bool:
    return isinstance(value, float | int) or (isinstance(value, Tensor) and value.numel() == 1)

"""Recognise the folders in which runs keep their logs and checkpoints."""

import os
import re
from pathlib import Path

from .image_files import has_image_suffix
from .walk import is_visible

MAX_ENTRIES = 1000
_LOGGERS = {"lightning_logs": "version_*", "wandb": "*run-*", "mlruns": "*/meta.yaml"}
"""The folders of loggers, and what is in them; they may hold pictures that were logged."""
_NAMES = {*_LOGGERS, "checkpoints"}
_ENTRIES = re.compile(r"version_\d+|checkpoints|.*\.ckpt|events\.out\.tfevents\..*")


def is_run_folder(folder: Path) -> bool:
    """Whether a folder is of a logger, or has logs or checkpoints of runs and no images."""
    name = folder.name
    try:
        if name in _LOGGERS and any(folder.glob(_LOGGERS[name])):
            return True
        return _has_entries_of_runs(folder)
    except OSError:  # it cannot be listed, which is reported elsewhere
        return False


def _has_entries_of_runs(folder: Path) -> bool:
    """Whether there are files of runs and no images among the first entries, by their names."""
    is_found, count, folders = folder.name in _NAMES, 0, [str(folder)]
    while folders and count <= MAX_ENTRIES:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if has_image_suffix(entry.name):
                    return False
                count += 1
                is_found = is_found or _ENTRIES.fullmatch(entry.name) is not None
                if is_visible(entry.name) and entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
    return is_found

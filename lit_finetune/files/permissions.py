"""Find folders in which any user of the machine may put files."""

import os
import stat
import warnings
from pathlib import Path


def folder_open_to_all(folder: Path) -> Path | None:
    """The folder, or one above it, in which any user may create or exchange files.

    A sticky folder such as `/tmp` protects the folders in it, but not its own name for a new file.

    >>> folder_open_to_all(Path("/")) is None
    True
    """
    if os.name != "posix":
        return None
    folder = folder.absolute()
    for place in (folder, *folder.parents):
        try:
            mode = place.stat().st_mode
        except OSError:  # not there yet, or not to be seen
            continue
        is_protected = mode & stat.S_ISVTX and place != folder
        if mode & stat.S_IWOTH and not is_protected:
            return place
    return None


def warn_of_open_cache(folder: Path) -> None:
    """Warn that a cache may have been written by anybody: a checksum does not say by whom."""
    if place := folder_open_to_all(folder):
        warnings.warn(
            f"Every user of this machine may write into '{place}', where a cache is kept: the run"
            " trains on what lies there, and checksums show damage, not who wrote it. Use a"
            " `cache_dir` of your own, or take the permission away: `chmod o-w`.",
            stacklevel=2,
        )

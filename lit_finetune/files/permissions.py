"""Find folders that any user of the machine may write to."""

import os
import stat
import warnings
from pathlib import Path


def folder_open_to_all(folder: Path) -> Path | None:
    """The folder, or a parent of it, that any user may write to; None if there is none.

    A sticky folder such as `/tmp` protects the folders in it, but anybody may create files in it.

    >>> folder_open_to_all(Path("/")) is None
    True
    """
    if os.name != "posix":
        return None
    folder = folder.absolute()
    for path in (folder, *folder.parents):
        try:
            mode = path.stat().st_mode
        except OSError:  # does not exist yet, or is not accessible
            continue
        is_protected = mode & stat.S_ISVTX and path != folder
        if mode & stat.S_IWOTH and not is_protected:
            return path
    return None


def warn_of_open_cache(folder: Path) -> None:
    """Warn of a cache folder that any user may write to: checksums do not show who wrote a file."""
    if path := folder_open_to_all(folder):
        warnings.warn(
            f"Every user of this machine may write to '{path}', which contains a cache: the run"
            " trains on the files there, and checksums show damage, not who wrote them. Use a"
            " `cache_dir` of your own, or remove the permission: `chmod o-w`.",
            stacklevel=2,
        )

"""Write a file or a folder so that others see the old one or the new one, and never a part.

It is written under a temporary name in the same folder and renamed when it is complete. That name
cannot be guessed, and it is created exclusively, so that it follows no link. If the target is a
link, the link is replaced, and the file that it points to is unchanged. A process locks its
temporary files; the next writer in the folder removes unlocked ones, which a killed process left.
"""

import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_TEMPORARY = re.compile(r"\.lit-finetune-[0-9a-f]{32}\.tmp")
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)  # Windows has none, and restricts who may make links


@contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file that replaces `path` when the block ends; after an error `path` is unchanged.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_write(Path(folder, "a.txt")) as file:
    ...         _ = file.write(b"whole")
    ...     Path(folder, "a.txt").read_text()
    'whole'

    Raises:
        OSError: The file cannot be written. The error names `path`, which is unchanged.
    """
    path = Path(path)
    with _naming_target(path):
        _refuse_special(path)
        remove_stale(path.parent)
        temporary, file = _create(path.parent)
        try:
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())  # else a power cut could leave the name without the content
                os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise


def atomic_write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, completely or not at all.

    Raises:
        OSError: The file cannot be written. The error names `path`, which is unchanged.
    """
    with atomic_write(path) as file:
        file.write(text.encode("utf-8"))


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Give an empty folder that is renamed to `path` at the end; after an error it is removed.

    Raises:
        OSError: The folder cannot be made, or `path` exists. The error names `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _naming_target(path), temporary_folder(path.parent) as temporary:
        new = temporary / "new"
        new.mkdir()
        yield new
        if os.path.lexists(path):
            raise FileExistsError(f"'{path}' is there already.")
        new.rename(path)


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Make a folder in another one, and remove it with its content at the end."""
    remove_stale(parent)
    folder = temporary_path(parent)
    folder.mkdir()
    lock = _lock_folder(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def temporary_path(folder: Path) -> Path:
    """A path in a folder that nobody can guess, and that `remove_stale` recognises."""
    return folder / f".lit-finetune-{secrets.token_hex(16)}.tmp"


def replace_path(new: Path, target: Path) -> None:
    """Replace a file or a folder by another one; the old one exists until the new one is complete.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("new", "last.ckpt"):
    ...         Path(folder, name).mkdir()
    ...         _ = Path(folder, name, "rank").write_text(name)
    ...     replace_path(Path(folder, "new"), Path(folder, "last.ckpt"))
    ...     os.listdir(folder), Path(folder, "last.ckpt", "rank").read_text()
    (['last.ckpt'], 'new')
    """
    if not target.is_dir() or target.is_symlink():
        new.replace(target)
        return
    old = target.with_name(f"{target.name}.old-{secrets.token_hex(8)}")
    target.rename(old)
    new.rename(target)
    shutil.rmtree(old)


def open_lock(path: Path) -> BinaryIO:
    """Open a file in order to lock it; create it if it does not exist, and keep its content.

    Raises:
        OSError: It is a link, or cannot be opened.
    """
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | _NO_FOLLOW, 0o666), "r+b")


def remove_stale(folder: Path) -> None:
    """Remove the temporary files and folders of this user's killed processes from a folder."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _TEMPORARY.fullmatch(entry.name):
                _remove_unlocked(Path(entry.path))


def _create(folder: Path) -> tuple[Path, BinaryIO]:
    """Create and lock a temporary file, with the permissions of the umask."""
    while True:
        temporary = temporary_path(folder)
        file = open(temporary, "xb")  # noqa: SIM115  # exclusive: it follows no link
        if _try_lock(file.fileno()) is not False and temporary.exists():
            return temporary, file
        file.close()  # another process removed it as stale before it was locked


def _remove_unlocked(path: Path) -> None:
    """Remove a temporary file or folder of this user, unless a process holds its lock."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | _NO_FOLLOW)
    except (OSError, AttributeError):  # a link, of another user, already removed; Windows
        return
    try:
        status = os.fstat(descriptor)
        if status.st_uid == os.geteuid() and _try_lock(descriptor):
            if stat.S_ISDIR(status.st_mode):
                shutil.rmtree(path, ignore_errors=True)
            elif stat.S_ISREG(status.st_mode):
                with suppress(OSError):
                    path.unlink()
    finally:
        os.close(descriptor)


def _lock_folder(folder: Path) -> int | None:
    """Lock a folder; None if the system cannot."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | _NO_FOLLOW)
    except OSError:  # Windows
        return None
    _try_lock(descriptor)
    return descriptor


def _try_lock(descriptor: int) -> bool | None:
    """Lock a file; whether that succeeded, None if the system has no such lock."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ModuleNotFoundError, OSError):  # Windows; file systems without locks
        return None
    return True


def _refuse_special(path: Path) -> None:
    """Refuse to replace a folder, a device or a pipe by a file."""
    with suppress(FileNotFoundError, NotADirectoryError):
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(f"'{path}' is a folder: give the name of a file.")
        if not stat.S_ISREG(mode):
            raise FileExistsError(f"'{path}' is no ordinary file: give another name.")


@contextmanager
def _naming_target(path: Path) -> Iterator[None]:
    """Let an error of the system name the target, not the temporary file."""
    try:
        yield
    except OSError as error:
        name = error.filename
        is_ours = name is None or (isinstance(name, str | os.PathLike) and _is_temporary(name))
        if error.errno is None or not is_ours:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _is_temporary(name: str | os.PathLike[str]) -> bool:
    return bool(_TEMPORARY.search(os.fspath(name)))

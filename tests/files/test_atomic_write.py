"""Files are there whole or not at all, under whatever a hostile neighbour plants beside them."""

import errno
import os
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lit_finetune.files.atomic_write import (
    atomic_folder,
    atomic_write,
    atomic_write_text,
    open_lock,
    remove_stale,
    temporary_folder,
    temporary_path,
)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("before", ["nothing", "file", "link to a file", "dangling link"])
def test_the_content_takes_the_place_of_what_was_there(tmp_path: Path, before: str) -> None:
    target, victim = tmp_path / "here" / "table.csv", tmp_path / "victim"
    target.parent.mkdir()
    if before == "file":
        target.write_text("old")
    elif before != "nothing":
        target.symlink_to(victim)
    if before == "link to a file":
        victim.write_text("precious")

    atomic_write_text(target, "new")

    assert target.read_text() == "new"
    assert not target.is_symlink()
    assert names(target.parent) == {"table.csv"}
    assert not victim.exists() or victim.read_text() == "precious"


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_permissions_are_those_of_any_new_file(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        atomic_write_text(tmp_path / "ours", "")
        (tmp_path / "pythons").write_text("")
    finally:
        os.umask(before)

    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ours", "pythons")}
    assert modes == {0o666 & ~umask}


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "last.ckpt"
    target.write_text("old")

    def write_until_the_disk_is_full() -> None:
        with atomic_write(target) as file:
            file.write(b"new")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match=r"No space left on device: '.*/last\.ckpt'"):
        write_until_the_disk_is_full()

    assert target.read_text() == "old"
    assert names(tmp_path) == {"last.ckpt"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to_is_told_by_the_name_of_the_target(
    tmp_path: Path,
) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(PermissionError, match=r"'.*/table\.csv'"):
            atomic_write_text(tmp_path / "table.csv", "new")
    finally:
        tmp_path.chmod(0o755)


def test_no_device_pipe_or_folder_is_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to(os.devnull)
    (tmp_path / "folder").mkdir()
    before = names(tmp_path)

    for name in before:
        with pytest.raises(OSError, match=name):
            atomic_write_text(tmp_path / name, "new")

    assert names(tmp_path) == before
    assert (tmp_path / "null").is_symlink()


def in_a_fork(act: Callable[[], None]) -> int:
    """Start it in a process of its own, and return its id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        act()
        status = 0
    finally:
        os._exit(status)


def write_without_end() -> None:
    with atomic_write("file") as file, temporary_folder(Path()) as folder:
        file.write(b"a part")
        (folder / "part").write_text("a part")
        Path("ready").touch()
        time.sleep(1000)


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    victim, link = tmp_path / "victim", temporary_path(tmp_path)
    victim.mkdir()
    link.symlink_to(victim)
    for name in ("thesis.tmp", ".lit-finetune-thesis.tmp", "a.part", "file.old"):
        (tmp_path / name).write_text("precious")
    kept = {*names(tmp_path), "ready"}
    pid = in_a_fork(write_without_end)
    while not Path("ready").exists():
        time.sleep(0.01)
    while_it_writes = names(tmp_path)

    remove_stale(tmp_path)
    assert names(tmp_path) == while_it_writes
    assert len(while_it_writes) == len(kept) + 2

    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    remove_stale(tmp_path)
    assert names(tmp_path) == kept


def write_often() -> None:
    for number in range(100):
        atomic_write_text("file", f"{number}" * 1000)


def test_processes_that_write_one_file_do_not_hinder_each_other(tmp_path: Path) -> None:
    pids = [in_a_fork(write_often) for _ in range(3)]

    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0, 0]
    assert (tmp_path / "file").read_text() == "99" * 1000
    assert names(tmp_path) == {"file"}


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "deep" / "shards") as new:
        (new / "a").write_text("whole")
        assert not (tmp_path / "deep" / "shards").exists()
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "deep" / "other"):
        raise ZeroDivisionError

    assert names(tmp_path / "deep") == {"shards"}
    assert (tmp_path / "deep" / "shards" / "a").read_text() == "whole"


def test_a_lock_follows_no_link_and_empties_no_file(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "lock")

    open_lock(tmp_path / "lock").close()
    with pytest.raises(OSError, match="link"):
        open_lock(tmp_path / "link")

    assert (tmp_path / "lock").read_text() == "kept"

"""Why a table is not found or not kept is told by its cause, and the training is the same."""

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from lit_finetune.callbacks import FrozenPrefixCache
from lit_finetune.feature_cache.files import partial_path
from tests.callbacks.prefix_runs import Run, are_equal

NOTHING = {"num_sanity_val_steps": 0, "max_epochs": 2}


@pytest.fixture(scope="module")
def plain() -> Run:
    """The run that keeps nothing."""
    return Run("head_only", **NOTHING)


def kept(folder: Path, **options: Any) -> Run:
    return Run("head_only", FrozenPrefixCache(cache_dir=folder, **options), **NOTHING)


def test_a_folder_without_permission_is_called_so(
    tmp_path: Path,
    plain: Run,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    make = os.mkdir

    def forbidden(path: Any, *args: Any) -> None:
        if str(path).startswith(str(tmp_path / "kept")):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        make(path, *args)

    caplog.set_level("INFO")
    monkeypatch.setattr(os, "mkdir", forbidden)  # root may write anywhere

    assert are_equal(kept(tmp_path / "kept"), plain)
    assert f"not in {tmp_path}/kept/head-" in caplog.text
    assert "no permission ([Errno 13] Permission denied" in caplog.text
    assert "no room" not in caplog.text


def test_the_table_of_another_key_is_told_and_replaced(
    tmp_path: Path, plain: Run, caplog: pytest.LogCaptureFixture
) -> None:
    kept(tmp_path)
    one, other = sorted(tmp_path.iterdir())
    right = (one / "about.json").read_bytes()
    (one / "about.json").write_bytes((other / "about.json").read_bytes())
    caplog.set_level("INFO")

    assert are_equal(kept(tmp_path), plain)
    assert f"{one} is damaged, or another table's ('about.json' has other values)" in caplog.text
    assert (one / "about.json").read_bytes() == right


def test_another_writer_is_told_and_the_run_makes_its_own(
    tmp_path: Path, plain: Run, caplog: pytest.LogCaptureFixture
) -> None:
    kept(tmp_path)
    one, other = sorted(tmp_path.iterdir())
    part = partial_path(one, "of-another-run")
    one.rename(part)
    caplog.set_level("INFO")

    with open(part / "lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as long as it writes
        assert are_equal(kept(tmp_path), plain)

    assert f"another process is writing {one} at the moment" in caplog.text
    assert {each.name for each in tmp_path.iterdir()} == {one.name, other.name, part.name}

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lit_finetune.prefix_store import (
    Column,
    FileWriter,
    MemoryWriter,
    Table,
    abandon_files,
    begin_files,
    finish_files,
    open_files,
    part_of,
)

COLUMNS = {
    "h": Column.of(torch.ones(1, 3, 2, 2), 6),
    "labels": Column.of(torch.ones(1, dtype=torch.long), 6),
}
BATCH = {"h": torch.randn(6, 3, 2, 2), "labels": torch.arange(6)}


def written(folder: Path, token: str = "a") -> Table | None:
    part = part_of(folder, token)
    lock = begin_files(part, COLUMNS)
    writer = FileWriter(part, COLUMNS)
    writer.write([3, 1, 0], {name: rows[[3, 1, 0]] for name, rows in BATCH.items()})
    writer.write([2, 4, 5], {name: rows[[2, 4, 5]] for name, rows in BATCH.items()})
    writer.close()
    finish_files(part, lock, folder, COLUMNS)
    return open_files(folder)


def test_files_give_what_was_written(tmp_path: Path) -> None:
    table = written(tmp_path / "kept")

    assert table is not None
    rows = table.read([5, 0])
    assert torch.equal(rows["h"], BATCH["h"][[5, 0]])
    assert rows["labels"].tolist() == [5, 0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kept"]


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_rows_are_kept_in_a_smaller_type_and_come_back_in_their_own(name: str) -> None:
    dtype, batch = getattr(torch, name), torch.randn(4, 5)
    writer = MemoryWriter({"h": Column.of(batch, 4, dtype)})

    writer.write(range(4), {"h": batch})

    assert torch.equal(writer.table().read(range(4))["h"], batch.to(dtype).float())
    assert writer.columns["h"].num_bytes == 20 * dtype.itemsize


def test_what_is_half_already_is_not_kept_in_more() -> None:
    assert Column.of(torch.ones(1, 2, dtype=torch.bfloat16), 1, torch.float32).dtype == "bfloat16"


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (0, 3, 1, 2)])
def test_rows_lie_in_memory_as_they_did(order: tuple[int, ...]) -> None:
    batch = torch.randn(4, 3, 5, 6).permute(order).contiguous()
    back = [order.index(dim) for dim in range(4)]
    batch = batch.permute(back)
    writer = MemoryWriter({"h": Column.of(batch, 4)})
    writer.write(range(4), {"h": batch})

    found = writer.table().read(range(4))["h"]

    assert torch.equal(found, batch)
    assert found.stride() == batch.stride()


def test_half_a_table_is_none(tmp_path: Path) -> None:
    begin_files(part_of(tmp_path / "kept", "a"), COLUMNS)

    assert open_files(tmp_path / "kept") is None


@pytest.mark.parametrize("name", ["h", "labels", "about.json"])
def test_a_table_that_was_cut_off_is_none(tmp_path: Path, name: str) -> None:
    written(tmp_path / "kept")
    file = tmp_path / "kept" / name

    os.truncate(file, file.stat().st_size - 1)

    assert open_files(tmp_path / "kept") is None


def test_of_two_writers_of_one_table_the_first_stays(tmp_path: Path) -> None:
    first = written(tmp_path / "kept", "a")

    second = written(tmp_path / "kept", "b")

    assert first is not None
    assert second is not None
    assert torch.equal(first.read(range(6))["h"], second.read(range(6))["h"])
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


KILLED = """
import os, signal, sys
from pathlib import Path
from lit_finetune.prefix_store import *
import torch
columns = {"h": Column.of(torch.ones(1, 3, 2, 2), 6)}
part = part_of(Path(sys.argv[1]), "killed")
lock = begin_files(part, columns)
FileWriter(part, columns).write([0], {"h": torch.ones(1, 3, 2, 2)})
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_what_a_killed_writer_left_is_thrown_away_and_what_is_being_written_stays(
    tmp_path: Path,
) -> None:
    process = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "kept")])
    assert process.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    living = part_of(tmp_path / "other", "a")
    lock = begin_files(living, COLUMNS)

    written(tmp_path / "kept", "b")

    assert sorted(p.name for p in tmp_path.iterdir()) == [living.name, "kept"]
    abandon_files(living, lock)
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


def test_what_does_not_fit_is_told_before_anything_is_written(tmp_path: Path) -> None:
    huge = {"h": Column.of(torch.ones(1, 10**9), 10**9)}

    with pytest.raises(OSError, match="MiB left"):
        begin_files(part_of(tmp_path / "kept", "a"), huge)

    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the rights do not bind here")
def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with pytest.raises(PermissionError):
            begin_files(part_of(tmp_path / "kept", "a"), COLUMNS)
    finally:
        tmp_path.chmod(stat.S_IRWXU)

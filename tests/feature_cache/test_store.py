import multiprocessing
import os
import random
import signal
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from lit_finetune.feature_cache.files import (
    DamagedTableError,
    FileTable,
    FileWriter,
    create_files,
    discard_files,
    open_files,
    partial_path,
    publish_files,
)
from lit_finetune.feature_cache.store import Column, MemoryTable
from lit_finetune.files.checksums import open_regular, read_at

COLUMNS = {
    "h": Column.of(torch.ones(1, 3, 2, 2), 6),
    "labels": Column.of(torch.ones(1, dtype=torch.long), 6),
}
BATCH = {"h": torch.randn(6, 3, 2, 2), "labels": torch.arange(6)}


def written(folder: Path, token: str = "a", numbers: Sequence[int] = range(6)) -> FileTable:
    part = partial_path(folder, token)
    lock = create_files(part, COLUMNS)
    writer = FileWriter(part, folder, COLUMNS)
    for few in (list(numbers)[::2], list(numbers)[1::2]):
        writer.write(few, {name: rows[few] for name, rows in BATCH.items()})
    writer.close()
    publish_files(part, lock, folder, COLUMNS)
    return open_files(folder, COLUMNS)


def test_files_give_what_was_written(tmp_path: Path) -> None:
    rows = written(tmp_path / "kept").read([5, 0])

    assert torch.equal(rows.batch["h"], BATCH["h"][[5, 0]])
    assert rows.batch["labels"].tolist() == [5, 0]
    assert not rows.missing
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kept"]


@pytest.mark.parametrize("threads", [1, 3])
def test_rows_that_nobody_wrote_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    monkeypatch.setattr("lit_finetune.feature_cache.files._LARGE_ROW", 1)
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    memory, numbers = MemoryTable(COLUMNS), [4, 1]
    memory.write(numbers, {name: rows[numbers] for name, rows in BATCH.items()})

    for table in (written(tmp_path / "kept", numbers=numbers), memory):
        rows = table.read(range(6))
        assert (rows.unwritten, rows.changed) == ([0, 2, 3, 5], [])
        table.write([2, 5, 0], {name: each[[2, 5, 0]] for name, each in BATCH.items()})
        rows = table.read([0, 1, 2, 3, 4, 5])
        assert rows.missing == [3]
        assert torch.equal(rows.batch["h"][[0, 1, 2, 4, 5]], BATCH["h"][[0, 1, 2, 4, 5]])


def test_no_change_of_a_file_gives_other_rows(tmp_path: Path) -> None:
    rng, folder = random.Random(0), tmp_path / "kept"
    written(folder)
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    noticed = 0

    for _ in range(300):
        tables = [open_files(folder, COLUMNS)]  # before the change, as a run has it open
        change(rng, folder / rng.choice([*whole]))
        try:
            tables.append(open_files(folder, COLUMNS))
        except DamagedTableError:
            noticed += 1
        for table in tables:
            rows = table.read(range(6))
            noticed += bool(rows.missing)
            good = [number for number in range(6) if number not in rows.missing]
            assert all(torch.equal(rows.batch[name][good], BATCH[name][good]) for name in COLUMNS)
        for name, content in whole.items():
            (folder / name).write_bytes(content)

    assert noticed > 300


def change(rng: random.Random, path: Path) -> None:
    """Do something to a file that a disk, another program or a person may do."""
    content = bytearray(path.read_bytes())
    start = rng.randrange(len(content))
    stretch = slice(start, start + rng.choice([1, 4, 40]))
    how = rng.choice(["flip", "zeros", "cut", "move", "grow"])
    if how == "flip":
        content[start] ^= 1 << rng.randrange(8)
    elif how == "zeros":
        content[stretch] = bytes(len(content[stretch]))
    elif how == "cut":
        del content[start:]
    elif how == "move":
        content[stretch] = content[: len(content[stretch])]
    else:
        content[start:start] = rng.randbytes(8)
    with path.open("r+b") as file:  # the same file: a run has it open
        file.truncate(0)
        file.write(content)


def test_rows_that_changed_places_are_noticed(tmp_path: Path) -> None:
    table = written(tmp_path / "kept")
    file = tmp_path / "kept" / "rows.bin"
    content = file.read_bytes()
    size = len(content) // 6

    file.write_bytes(content[size : 2 * size] + content[:size] + content[2 * size :])

    assert table.read(range(6)).changed == [0, 1]


def test_the_table_of_something_else_is_none(tmp_path: Path) -> None:
    written(tmp_path / "kept")
    (tmp_path / "kept").rename(tmp_path / "other")

    with pytest.raises(DamagedTableError, match="other values"):
        open_files(tmp_path / "other", COLUMNS)


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_rows_are_kept_in_a_smaller_type_and_come_back_in_their_own(name: str) -> None:
    dtype, batch = getattr(torch, name), torch.randn(4, 5)
    table = MemoryTable({"h": Column.of(batch, 4, dtype)})

    table.write(range(4), {"h": batch})

    assert torch.equal(table.read(range(4)).batch["h"], batch.to(dtype).float())
    assert table.columns["h"].num_bytes == 20 * dtype.itemsize


def test_what_is_half_already_is_not_kept_in_more() -> None:
    assert (
        Column.of(torch.ones(1, 2, dtype=torch.bfloat16), 1, torch.float32).stored_dtype
        == "bfloat16"
    )


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (0, 3, 1, 2)])
def test_rows_lie_in_memory_as_they_did(order: tuple[int, ...]) -> None:
    batch = torch.randn(4, 3, 5, 6).permute(order).contiguous()
    back = [order.index(dim) for dim in range(4)]
    batch = batch.permute(back)
    table = MemoryTable({"h": Column.of(batch, 4)})
    table.write(range(4), {"h": batch})

    found = table.read(range(4)).batch["h"]

    assert torch.equal(found, batch)
    assert found.stride() == batch.stride()


def test_half_a_table_is_none(tmp_path: Path) -> None:
    create_files(partial_path(tmp_path / "kept", "a"), COLUMNS)

    with pytest.raises(FileNotFoundError):
        open_files(tmp_path / "kept", COLUMNS)


@pytest.mark.parametrize("name", ["rows.bin", "about.json"])
@pytest.mark.parametrize("how", ["cut", "gone", "link", "pipe", "folder"])
def test_a_damaged_table_is_told_and_replaced(tmp_path: Path, name: str, how: str) -> None:
    written(tmp_path / "kept")
    file, elsewhere = tmp_path / "kept" / name, tmp_path / "elsewhere"
    if how == "cut":
        os.truncate(file, file.stat().st_size - 1)
    else:
        file.rename(elsewhere)
        makers = {"link": lambda: file.symlink_to(elsewhere), "pipe": lambda: os.mkfifo(file)}
        {**makers, "folder": file.mkdir, "gone": lambda: None}[how]()

    with pytest.raises(DamagedTableError, match="is damaged"):
        open_files(tmp_path / "kept", COLUMNS)

    assert not written(tmp_path / "kept", "b").read(range(6)).missing
    assert {p.name for p in tmp_path.iterdir()} <= {"kept", "elsewhere"}


@pytest.mark.parametrize("what", ["a file", "a link to a folder", "a link to nothing"])
def test_what_else_has_the_name_of_a_table_is_replaced(tmp_path: Path, what: str) -> None:
    kept, elsewhere = tmp_path / "tables" / "kept", tmp_path / "elsewhere"
    kept.parent.mkdir()
    if what == "a link to a folder":
        elsewhere.mkdir()
        (elsewhere / "mine").touch()
    if what == "a file":
        kept.touch()
    else:
        kept.symlink_to(elsewhere)

    assert not written(kept).read(range(6)).missing

    assert not kept.is_symlink()
    assert [p.name for p in kept.parent.iterdir()] == ["kept"]
    assert what != "a link to a folder" or (elsewhere / "mine").exists()


def test_a_file_that_is_cut_short_while_it_is_read_ends_nothing(tmp_path: Path) -> None:
    table = written(tmp_path / "kept")

    os.truncate(tmp_path / "kept" / "rows.bin", 100)

    rows = table.read(range(6))
    assert rows.changed == [1, 2, 3, 4, 5]
    assert torch.equal(rows.batch["h"][0], BATCH["h"][0])


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    table, victim = written(tmp_path / "kept"), tmp_path / "victim"
    victim.write_bytes(b"mine")
    for plant in (Path.symlink_to, Path.hardlink_to):
        (tmp_path / "kept" / "rows.bin").unlink()
        plant(tmp_path / "kept" / "rows.bin", victim)
        with pytest.raises(OSError, match=r"symbolic link|no file of its own"):
            table.write(range(6), BATCH)

    assert victim.read_bytes() == b"mine"


def test_of_two_writers_of_one_table_the_first_stays(tmp_path: Path) -> None:
    first = written(tmp_path / "kept", "a")

    second = written(tmp_path / "kept", "b")

    assert torch.equal(first.read(range(6)).batch["h"], second.read(range(6)).batch["h"])
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


def test_parts_that_are_not_ours_stay(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "rows.bin").touch()
    root = tmp_path / "tables"
    for name in (".part-mine", ".part-empty"):
        (root / name).mkdir(parents=True)
    (root / ".part-mine" / "photo.jpg").touch()
    (root / ".part-link").symlink_to(elsewhere)

    written(root / "kept")

    assert [p.name for p in elsewhere.iterdir()] == ["rows.bin"]
    assert len(list(root.iterdir())) == 4


@pytest.mark.parametrize("vector", [True, False])
def test_a_file_is_read_at_a_place_on_every_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vector: bool
) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    if not vector:
        monkeypatch.delattr("os.preadv")
    one, other = bytearray(2), bytearray(3)
    file = open_regular(tmp_path / "file")

    assert read_at(file, 4, [memoryview(one), memoryview(other)])
    assert (one, other) == (b"45", b"678")
    assert not read_at(file, 6, [memoryview(one), memoryview(other)])
    os.close(file)


def killed_amid_writing(path: Path) -> None:
    """What a process does that never ends its table."""
    part = partial_path(path, "killed")
    _lock = create_files(part, COLUMNS)
    FileWriter(part, path, COLUMNS).write([0], {name: rows[:1] for name, rows in BATCH.items()})
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_writer_left_is_thrown_away_and_what_is_being_written_stays(
    tmp_path: Path,
) -> None:
    killed = multiprocessing.get_context("fork").Process(
        target=killed_amid_writing, args=(tmp_path / "kept",)
    )
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    living = partial_path(tmp_path / "other", "a")
    lock = create_files(living, COLUMNS)

    written(tmp_path / "kept", "b")

    assert sorted(p.name for p in tmp_path.iterdir()) == [living.name, "kept"]
    discard_files(living, lock)
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


def test_what_does_not_fit_is_told_before_anything_is_written(tmp_path: Path) -> None:
    huge = {"h": Column.of(torch.ones(1, 10**9), 10**9)}

    with pytest.raises(OSError, match="MiB left"):
        create_files(partial_path(tmp_path / "kept", "a"), huge)

    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the rights do not bind here")
def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with pytest.raises(PermissionError):
            create_files(partial_path(tmp_path / "kept", "a"), COLUMNS)
    finally:
        tmp_path.chmod(stat.S_IRWXU)

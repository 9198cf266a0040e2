"""What is kept is what would be made anew, to the last bit, and never anything else."""

import multiprocessing
import os
import pickle
import random
import resource
import shutil
import signal
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from torch import nn

from datamodules.dataset import FileSamples, prepare_image
from datamodules.image_cache.build import FOLDER, open_cache
from datamodules.image_cache.files import FOOTER, MAGIC, SUFFIX, read_shards, write_shard
from lit_finetune.datamodules import DigitsDataModule, ImageFolderDataModule
from lit_finetune.files.checksums import checksum

SIZES = [(60, 40), (40, 60), (90, 90), (33, 120), (25, 25)]


def picture(number: int, size: tuple[int, int]) -> Image.Image:
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 256, (size[1] // 4 + 1, size[0] // 4 + 1, 3), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def photos(tmp_path) -> Path:
    for split, count in (("train", 10), ("val", 5)):
        for shift, name in enumerate(("ants", "bees")):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                number = 100 * shift + 10 * count + i
                picture(number, SIZES[i % 5]).save(folder / f"{i}.jpg", quality=90)
    return tmp_path / "photos"


def images(data: ImageFolderDataModule, part: str = "train") -> torch.Tensor:
    torch.manual_seed(1)
    data.setup("fit")
    loader = data.train_dataloader() if part == "train" else data.val_dataloader()
    return torch.cat([batch for batch, _ in loader])


def make(photos: Path, **options) -> ImageFolderDataModule:
    return ImageFolderDataModule(
        photos, **{"image_size": 16, "num_workers": 0, "batch_size": 6, **options}
    )


def shards(photos: Path) -> list[Path]:
    return sorted((photos / FOLDER).rglob(f"*{SUFFIX}"))


def repaint(path: Path) -> None:
    """Put other pixels under the same name, size and time: who sees them has read the file."""
    before = path.stat()
    new = path.with_suffix(".new.jpg")
    picture(7, (12, 12)).save(new)
    content = new.read_bytes()
    new.unlink()
    assert len(content) < before.st_size
    path.write_bytes(content.ljust(before.st_size, b"\0"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_evaluation_is_the_same_with_and_without(photos, cache, workers):
    expected = images(make(photos, cache="none"), "val")
    for _ in range(2):
        assert torch.equal(images(make(photos, cache=cache, num_workers=workers), "val"), expected)


@pytest.mark.parametrize("augmentation", ["auto", "trivial", "none"])
@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_training_is_the_same_with_and_without_where_pictures_are_small(
    photos, cache, augmentation
):
    options = {"image_size": 32, "train_augmentation": augmentation}
    expected = images(make(photos, cache="none", **options))
    for workers in (0, 1):
        options |= {"cache": cache, "cache_size": 120, "num_workers": workers}
        assert torch.equal(images(make(photos, **options)), expected)


def test_larger_pictures_are_kept_at_the_size_that_is_asked_for(photos):
    data = make(photos, cache="disk", cache_size=30)
    first = images(data)
    cached = data.train_dataloader().dataset.cache
    sizes = {min(cached.get(i).shape[:2]) for i in range(20)}

    assert sizes == {25, 30}
    assert not torch.equal(first, images(make(photos, cache="none")))
    assert torch.equal(first, images(make(photos, cache="ram", cache_size=30)))


def test_a_later_run_reads_no_picture_again(photos):
    expected = {part: images(make(photos, cache="disk"), part) for part in ("train", "val")}
    for path in photos.rglob("*.jpg"):
        repaint(path)
    for part, before in expected.items():
        assert torch.equal(images(make(photos, cache="disk"), part), before)
        assert not torch.equal(images(make(photos, cache="none"), part), before)
    assert len(shards(photos)) == 2


def test_a_changed_picture_is_read_again_and_no_other(photos):
    images(make(photos, cache="disk"), "val")
    names = make(photos).read_samples("val").names
    repaint(photos / names[3])
    picture(9, (30, 50)).save(photos / names[6])
    data = make(photos, cache="disk")
    after, fresh = images(data, "val"), images(make(photos, cache="none"), "val")

    same = [torch.equal(a, b) for a, b in zip(after, fresh, strict=True)]
    assert same == [i != 3 for i in range(10)]


def test_a_picture_with_a_new_time_is_read_again(photos):
    images(make(photos, cache="disk"), "val")
    path = photos / make(photos).read_samples("val").names[0]
    repaint(path)
    os.utime(path, ns=(1, 1))

    fresh = images(make(photos, cache="none"), "val")
    assert torch.equal(images(make(photos, cache="disk"), "val"), fresh)


def test_pictures_that_come_and_go_are_seen(photos):
    images(make(photos, cache="disk"), "val")
    (photos / "val/ants/0.jpg").unlink()
    picture(50, (40, 40)).save(photos / "val/bees/7.jpg")

    fresh = images(make(photos, cache="none"), "val")
    assert len(fresh) == 10
    assert torch.equal(images(make(photos, cache="disk"), "val"), fresh)


@pytest.mark.parametrize(
    "options", [{"image_size": 12}, {"resize_size": 20}, {"interpolation": "bicubic"}]
)
def test_another_transform_has_pictures_of_its_own(photos, options):
    first = images(make(photos, cache="disk"), "val")
    fresh = images(make(photos, cache="none", **options), "val")

    assert torch.equal(images(make(photos, cache="disk", **options), "val"), fresh)
    assert torch.equal(images(make(photos, cache="disk"), "val"), first)


def test_other_means_and_augmentations_share_what_is_kept(photos):
    images(make(photos, cache="disk"))
    before = shards(photos)
    images(make(photos, cache="disk", mean=0.5, train_augmentation="rand"))

    assert shards(photos) == before


def test_pictures_elsewhere_of_the_same_name_are_not_taken_for_these(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "copy")
    for path in (tmp_path / "copy").rglob("*.jpg"):
        repaint(path)
    images(make(photos, cache="disk", cache_dir=tmp_path / "kept"), "val")
    other = images(make(tmp_path / "copy", cache="disk", cache_dir=tmp_path / "kept"), "val")

    assert torch.equal(other, images(make(tmp_path / "copy", cache="none"), "val"))


def test_pictures_and_their_cache_can_be_moved(photos, tmp_path):
    first = images(make(photos, cache="disk"), "val")
    moved = photos.rename(tmp_path / "moved")
    for path in moved.rglob("*.jpg"):
        repaint(path)

    assert torch.equal(images(make(moved, cache="disk"), "val"), first)


def test_shards_of_pictures_that_have_all_changed_are_removed(photos):
    images(make(photos, cache="disk"))
    before = set(shards(photos))
    for path in (photos / "train").rglob("*.jpg"):
        os.utime(path, ns=(1, 1))
    images(make(photos, cache="disk"))

    assert len(shards(photos)) == 2
    assert len(before & set(shards(photos))) == 1


def test_one_run_with_its_own_split_leaves_those_of_another_alone(tmp_path, photos):
    pictures = (photos / "train").rename(tmp_path / "pooled")
    images(make(pictures, cache="disk", train_augmentation="none"))
    before = set(shards(pictures))
    images(make(pictures, cache="disk", train_augmentation="none", seed=5))

    assert before <= set(shards(pictures))


def test_what_it_takes_is_told_before_and_only_once(photos, told):
    images(make(photos, cache="disk"))
    assert "20 train pictures take about" in told.text
    assert "10 val pictures take about 0.0 MiB" in told.text
    told.clear()
    images(make(photos, cache="disk"))
    assert "pictures take about" not in told.text


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b[:100], lambda b: b"", bytes.upper]
)
def test_a_damaged_file_is_not_served(photos, damage):
    expected = images(make(photos, cache="disk"))
    for path in shards(photos):
        content = damage(path.read_bytes())
        path.unlink()
        path.write_bytes(content[:-40] + content[-40:].upper())

    assert torch.equal(images(make(photos, cache="disk")), expected)


def test_no_change_of_a_file_gives_other_pixels(tmp_path):
    rng, names = random.Random(0), [f"{i}.png" for i in range(5)]
    for number, name in enumerate(names):
        picture(number, SIZES[number]).save(tmp_path / name)
    samples, folder = FileSamples(tmp_path, names, [0] * 5), tmp_path / "kept"
    pixels = [np.asarray(samples.load(i)) for i in range(5)]
    folder.mkdir()
    path = write_shard(folder, names, [samples.stamp(i) for i in range(5)], pixels)
    whole, noticed = path.read_bytes(), 0

    for _ in range(300):
        cached = open_cache(folder, samples)
        cached.get(0)  # it is open before the change, as that of a run is
        change(rng, path)
        for each in (cached, open_cache(folder, samples)):
            found = [each.get(i) for i in range(5)]
            noticed += any(one is None for one in found)
            assert all(
                one is None or np.array_equal(one, right)
                for one, right in zip(found, pixels, strict=True)
            )
        path.write_bytes(whole)

    assert noticed > 300


def change(rng: random.Random, path: Path) -> None:
    """Do something to a file that a disk, another program or a person may do."""
    content = bytearray(path.read_bytes())
    start = rng.choice([rng.randrange(len(content)), len(content) - rng.randrange(1, 2000)])
    stretch = slice(start, start + rng.choice([1, 16, 500]))
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


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_is_changed_or_cut_short_in_a_run_is_repaired(photos, workers):
    expected = images(make(photos, cache="disk"), "val")
    whole = {path: path.read_bytes() for path in shards(photos)}
    data = make(photos, cache="disk", num_workers=workers)
    assert torch.equal(images(data, "val"), expected)  # its files are open now
    for path, content in whole.items():
        os.truncate(path, 700)
        with path.open("r+b") as file:
            file.write(content[500:600])

    assert torch.equal(images(data, "val"), expected)
    assert torch.equal(torch.cat([batch for batch, _ in data.val_dataloader()]), expected)


def test_changed_pixels_are_made_anew_and_repaired(photos, caplog):
    expected = images(make(photos, cache="disk"), "val")
    whole = {path: path.read_bytes() for path in shards(photos)}
    for path, content in whole.items():
        before = path.stat()
        path.write_bytes(bytes(byte ^ 255 for byte in content[:1500]) + content[1500:])
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    assert torch.equal(images(make(photos, cache="disk"), "val"), expected)
    assert "does not hold what was written" in caplog.text
    caplog.clear()
    assert torch.equal(images(make(photos, cache="disk"), "val"), expected)
    assert "does not hold" not in caplog.text
    assert sum(path.read_bytes() == content for path, content in whole.items()) == 1  # val alone


def test_files_that_cannot_be_ours_are_removed_and_links_lead_to_nothing(photos, tmp_path):
    expected = images(make(photos, cache="disk"), "val")
    mine = tmp_path / "mine"
    for number, path in enumerate(shards(photos)):
        if number:
            path.write_bytes(b"no shard")
        else:
            path.replace(mine)
            path.symlink_to(mine)

    assert torch.equal(images(make(photos, cache="disk"), "val"), expected)
    assert mine.exists()
    assert not any(path.is_symlink() for path in shards(photos))


@pytest.mark.parametrize(
    "values",
    [
        {"starts": [-1]},
        {"starts": [2**62]},
        {"shapes": [[2**31, 2**31, 4]]},
        {"shapes": [[-1, -1, 3]]},
        {"shapes": [[1, 3]]},
        {"sums": [1, 2]},
        {"starts": [0.5]},
        {"stamps": [[object()]]},
    ],
)
def test_an_index_that_cannot_be_is_not_followed(tmp_path, values):
    given = {"names": np.frombuffer(b"a", np.uint8), "stamps": [[1, 1]], "starts": [0]}
    given |= {"shapes": [[1, 1, 3]], "sums": [checksum([memoryview(b"abc")])], **values}
    buffer = BytesIO()
    np.savez(buffer, **{key: np.asarray(value) for key, value in given.items()})
    index = buffer.getvalue()
    footer = FOOTER.pack(MAGIC, 3, len(index), checksum([memoryview(index)]))
    (tmp_path / f"a{SUFFIX}").write_bytes(b"abc" + index + footer)

    assert not read_shards(tmp_path)


def test_a_folder_that_cannot_be_written_to_is_told_and_the_run_goes_on(photos, tmp_path):
    expected = images(make(photos, cache="ram", cache_size=30))
    (tmp_path / "file").write_text("")
    data = make(photos, cache="disk", cache_size=30, cache_dir=tmp_path / "file" / "kept")
    with pytest.warns(UserWarning, match=r"cannot be kept in '.*file/kept.*The run goes on"):
        assert torch.equal(images(data), expected)


def test_a_full_cache_serves_where_nothing_can_be_written(photos):
    expected = images(make(photos, cache="disk"))
    for lock in (photos / FOLDER).rglob("lock"):
        lock.unlink()
        lock.mkdir()  # not to be opened, even by root
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(images(make(photos, cache="disk")), expected)
    (photos / "train/ants/0.jpg").touch()
    with pytest.warns(UserWarning, match="train pictures cannot be kept in"):
        assert torch.equal(images(make(photos, cache="disk")), expected)


def test_a_run_whose_files_are_removed_under_it_goes_on(photos):
    data = make(photos, cache="disk")
    data.setup("fit")
    shutil.rmtree(photos / FOLDER)
    torch.manual_seed(1)
    found = torch.cat([batch for batch, _ in data.train_dataloader()])

    assert torch.equal(found, images(make(photos, cache="ram")))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_told_and_the_run_goes_on(photos, tmp_path):
    expected = images(make(photos, cache="none"), "val")
    photos.chmod(0o555)
    with pytest.warns(UserWarning, match="cannot be kept in"):
        assert torch.equal(images(make(photos, cache="disk"), "val"), expected)
    photos.chmod(0o755)


def test_what_does_not_fit_on_the_disk_is_told_and_not_begun(photos, monkeypatch):
    expected = images(make(photos, cache="ram", cache_size=30))
    little = SimpleNamespace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: little)
    with pytest.warns(UserWarning, match=r"pictures take about .* free: they are not kept") as told:
        assert torch.equal(images(make(photos, cache="disk", cache_size=30)), expected)
    assert len(told) == 2
    assert not shards(photos)


def apart(run: Callable[..., None], *args: Any) -> Any:
    """A process that does this; forked, for a fresh one takes seconds to start."""
    process = multiprocessing.get_context("fork").Process(target=run, args=args)
    process.start()
    return process


def save_images(photos: Path, out: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        found = images(make(photos, cache="disk"))
    torch.save((found, [str(warning.message) for warning in caught]), out)


def save_images_on_a_small_disk(photos: Path, out: Path) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, most))
    data = make(photos, cache="disk")
    with pytest.warns(UserWarning, match="File too large.*The run goes on"):
        found = images(data)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    torch.save(found, out)


def stop_before_the_end(photos: Path, reached: Any) -> None:
    def wait(_: int) -> None:
        reached.set()
        signal.pause()

    os.fsync = wait  # in this process alone
    images(make(photos, cache="disk"))


@pytest.mark.slow
def test_a_disk_that_fills_up_is_told_and_the_run_goes_on(photos, tmp_path):
    expected = images(make(photos, cache="ram"))
    run = apart(save_images_on_a_small_disk, photos, tmp_path / "out.pt")
    run.join(60)

    assert run.exitcode == 0
    assert torch.equal(torch.load(tmp_path / "out.pt"), expected)
    assert {path.suffix for path in (photos / FOLDER).rglob("*.*")} <= {SUFFIX}


def test_a_writer_that_is_killed_leaves_nothing_that_is_served(photos):
    expected = images(make(photos, cache="ram"))
    reached = multiprocessing.get_context("fork").Event()
    run = apart(stop_before_the_end, photos, reached)
    assert reached.wait(60)
    (half,) = (photos / FOLDER).rglob("*.tmp")
    assert half.stat().st_size > 1000
    run.kill()
    run.join()

    assert not shards(photos)
    assert torch.equal(images(make(photos, cache="disk")), expected)
    assert len(shards(photos)) == 2
    assert not list((photos / FOLDER).rglob("*.tmp"))


def test_two_runs_at_once_make_one_cache(photos, tmp_path):
    runs = [apart(save_images, photos, tmp_path / f"{i}.pt") for i in range(3)]
    for run in runs:
        run.join(60)
    results = [torch.load(tmp_path / f"{i}.pt") for i in range(3)]
    expected = images(make(photos, cache="ram"))

    assert all(torch.equal(found, expected) for found, _ in results)
    assert [told for _, told in results] == [[], [], []]
    assert len(shards(photos)) == 2


def test_two_files_with_the_same_picture_do_no_harm(photos, tmp_path):
    expected = images(make(photos, cache="disk"))
    for path in shards(photos):
        shutil.copy(path, path.with_name(f"copy{SUFFIX}"))

    assert torch.equal(images(make(photos, cache="disk")), expected)


def test_workers_are_sent_no_pixels_from_files(photos):
    data = make(photos, cache="disk")
    images(data)
    sent = pickle.dumps(data.train_dataloader().dataset)

    assert len(sent) < 10_000
    assert pickle.loads(sent)[3][0].shape == (3, 16, 16)


def test_a_picture_that_cannot_be_read_stops_the_run_and_is_named(photos):
    broken = photos / "train/bees/1.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    with pytest.raises(OSError, match=r"train/bees/1\.jpg.*(?s:.*)`on_corrupt`"):
        make(photos, cache="disk").setup("fit")


def test_names_of_all_kinds_are_kept(tmp_path):
    names = ["a b.png", "ünïcode/ß.png", "new\nline.png"]
    samples = FileSamples(tmp_path, names, [0, 0, 0])
    for number, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture(number, (5, 4)).save(tmp_path / name)
    pixels = [np.asarray(samples.load(i)) for i in range(3)]
    folder = tmp_path / "kept"
    folder.mkdir()
    write_shard(folder, names, [samples.stamp(i) for i in range(3)], pixels)

    cached = open_cache(folder, samples)
    assert all(np.array_equal(cached.get(i), pixels[i]) for i in range(3))
    assert read_shards(folder)[0].names == names


@pytest.mark.parametrize("cache", ["auto", "ram", "disk", "none"])
def test_pictures_in_memory_are_the_same_however_they_are_kept(tmp_path, cache):
    options = {"digits": [0, 1], "image_size": 12, "batch_size": 50}
    reference, data = (
        DigitsDataModule(cache=each, cache_dir=tmp_path, **options) for each in ("none", cache)
    )
    for part in ("train", "val"):
        assert torch.equal(images(reference, part), images(data, part))


def test_a_cache_on_disk_of_pictures_without_a_folder_asks_for_one():
    with pytest.raises(ValueError, match="name one, `cache_dir`"):
        DigitsDataModule(cache="disk").setup("fit")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"cache": "dsik"}, "Did you mean 'disk'"), ({"cache_size": 0}, "at least 1, but got 0")],
)
def test_an_impossible_cache_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DigitsDataModule(**options)


def test_what_is_read_once_is_not_kept(photos):
    data = make(photos, cache="disk")
    data.setup("validate")

    assert not shards(photos)
    assert len(torch.cat([batch for batch, _ in data.val_dataloader()])) == 10


def test_evaluation_is_never_decoded_at_a_reduced_scale(tmp_path):
    for number, name in enumerate(("ants", "bees")):
        (tmp_path / name).mkdir()
        picture(number, (640, 480)).save(tmp_path / name / "0.jpg")
        picture(2 + number, (640, 480)).save(tmp_path / name / "1.jpg")
    data = make(tmp_path, val_split=0.5, cache="disk")
    fresh = make(tmp_path, val_split=0.5, cache="none")
    assert torch.equal(images(data, "val"), images(fresh, "val"))
    dataset = data.val_dataloader().dataset
    pixels = prepare_image(dataset.samples, dataset.pipeline, 0)
    assert np.array_equal(dataset.cache.get(0), pixels)


class SavesImages(LightningModule):
    """Writes what its process has seen."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.automatic_optimization = False  # a fork cannot go backward where autograd has threads
        self.folder, self.seen = folder, []
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        self.seen.append(batch[0])
        return self.layer(torch.ones(1)).sum()

    def on_train_end(self):
        torch.save(torch.cat(self.seen), self.folder / f"rank{self.global_rank}.pt")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_two_processes_make_one_cache_and_see_what_one_process_sees(photos, tmp_path, monkeypatch):
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)  # of tests before; both processes take it
    torch.manual_seed(1)
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp_fork",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(SavesImages(tmp_path), make(photos, cache="disk"))
    seen = torch.cat([torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1)])
    alone = images(make(photos, cache="disk"))

    assert len(shards(photos)) == 2
    assert sorted(seen.sum((1, 2, 3)).tolist()) == sorted(alone.sum((1, 2, 3)).tolist())
    assert {tuple(row) for row in seen.flatten(1).tolist()} == {
        tuple(row) for row in alone.flatten(1).tolist()
    }


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_kept_pictures_take_no_workers_beside_a_network_on_the_cpu(photos, cache, monkeypatch):
    monkeypatch.setattr("datamodules.base.spare_cpus", lambda devices: 3)

    def workers(**options) -> int:
        data = make(photos, num_workers=None, batch_size=2, **options)
        data.prepare_data()
        data.setup("fit")
        return data.train_dataloader().num_workers

    assert workers(cache="none") == 3
    assert workers(cache=cache) == 0

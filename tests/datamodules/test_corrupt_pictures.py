import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from lit_finetune.datamodules import ImageFolderDataModule


@pytest.fixture
def photos(tmp_path, make_pictures) -> Path:
    make_pictures(tmp_path / "photos" / "train", ants=6, bees=6)
    make_pictures(tmp_path / "photos" / "val", ants=3, bees=3)
    return tmp_path / "photos"


def truncate(path: Path) -> None:
    Image.effect_noise((64, 64), 50).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[:2000])


def test_files_that_are_no_pictures_are_all_named_before_training(photos, trainer, network):
    (photos / "train/ants/001.png").write_bytes(b"")
    (photos / "train/bees/002.png").write_bytes(b"<html>")
    with pytest.raises(OSError, match=r"2 \('train/ants/001.png', 'train/bees/002.png'\).*'skip'"):
        trainer.fit(network, ImageFolderDataModule(photos))
    assert not network.seen


@pytest.mark.parametrize("workers", [0, 1])
def test_a_truncated_picture_stops_the_training_with_its_name(photos, trainer, network, workers):
    truncate(photos / "train/bees/002.png")
    with pytest.raises(OSError, match=r"train/bees/002\.png.*(?s:.*)`on_corrupt` to 'skip'"):
        trainer.fit(network, ImageFolderDataModule(photos, num_workers=workers))


def test_unreadable_pictures_are_skipped_counted_and_never_replaced(photos, trainer, network):
    truncate(photos / "train/bees/002.png")
    truncate(photos / "val/ants/000.png")
    data = ImageFolderDataModule(photos, on_corrupt="skip", num_workers=0)
    with pytest.warns(UserWarning, match=r"cannot be read: 1 \('train/bees/002\.png'\)"):
        trainer.fit(network, data)
    assert torch.cat(network.seen).bincount().tolist() == [6, 5]
    assert data.counts("val") == {"ants": 2, "bees": 3}


def test_names_of_predictions_match_when_one_is_skipped(photos, trainer, network):
    truncate(photos / "val/ants/001.png")
    data = ImageFolderDataModule(photos, on_corrupt="skip", num_workers=0)
    with pytest.warns(UserWarning, match="cannot be read"):
        labels = torch.cat(trainer.predict(network, data)).tolist()
    assert len(data.predict_names) == len(labels) == 5
    assert "val/ants/001.png" not in data.predict_names


def test_a_picture_that_was_repaired_is_back_in_the_next_run(photos):
    path = photos / "train/bees/002.png"
    truncate(path)
    with pytest.warns(UserWarning, match="cannot be read"):
        ImageFolderDataModule(photos, on_corrupt="skip").prepare_data()
    Image.new("RGB", (9, 9)).save(path)
    os.utime(path, (1, 1))
    repaired = ImageFolderDataModule(photos, on_corrupt="skip")
    assert len(repaired.read_samples("train").names) == 12


def test_a_skipped_picture_leaves_the_split_of_the_others_as_it_was(tmp_path, make_pictures):
    make_pictures(tmp_path / "photos", ants=10, bees=10)
    before = set(ImageFolderDataModule(tmp_path / "photos").read_samples("val").names)
    broken = min(before)
    truncate(tmp_path / "photos" / broken)
    with pytest.warns(UserWarning, match="cannot be read"):
        after = ImageFolderDataModule(tmp_path / "photos", on_corrupt="skip").read_samples("val")
    assert set(after.names) == before - {broken}


def test_a_class_of_which_nothing_can_be_read_is_an_error(photos):
    for path in (photos / "train/bees").iterdir():
        path.write_bytes(b"")
    data = ImageFolderDataModule(photos, on_corrupt="skip")
    with (
        pytest.warns(UserWarning, match="cannot be read: 6"),
        pytest.raises(ValueError, match=r"'bees'.*cannot be read"),
    ):
        data.prepare_data()


def test_another_way_to_treat_them_is_refused(photos):
    with pytest.raises(ValueError, match="Choose one of: raise, skip"):
        ImageFolderDataModule(photos, on_corrupt="ignore")


@pytest.mark.parametrize("seed", range(4))
def test_a_split_is_made_of_the_pictures_that_can_be_read(tmp_path, make_pictures, seed, recwarn):
    make_pictures(tmp_path, ants=6, bees=6)
    for name in ("x.png", "y.png"):
        (tmp_path / "bees" / name).write_bytes(b"")
    for _ in range(2):  # with the split that is there, too
        data = ImageFolderDataModule(tmp_path, on_corrupt="skip", seed=seed, num_workers=0)
        data.prepare_data()
        data.setup("fit")
        assert data.counts("val") == {"ants": 1, "bees": 1}
        assert data.counts("train") == {"ants": 5, "bees": 5}
    told = [str(each.message) for each in recwarn]
    assert all(each.startswith("Left out, because they cannot be read") for each in told)


def test_a_class_that_an_earlier_split_lacks_in_validation_is_told_once(
    tmp_path, make_pictures, recwarn
):
    make_pictures(tmp_path, ants=6, bees=6)
    first = ImageFolderDataModule(tmp_path, num_workers=0)
    first.prepare_data()
    first.setup("fit")
    for name in first.read_samples("val").names:
        if name.startswith("bees"):
            truncate(tmp_path / name)
    data = ImageFolderDataModule(tmp_path, on_corrupt="skip", num_workers=0)
    data.prepare_data()
    data.setup("fit")

    told = [
        str(each.message) for each in recwarn if "no pictures of 1 ('bees')" in str(each.message)
    ]
    assert len(told) == 1
    assert "for val in the split in" in told[0]
    assert data.counts("val")["bees"] == 0

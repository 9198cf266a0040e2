import json
import os
import unicodedata

import pytest
import torch

from lit_finetune.datamodules import ImageFolderDataModule


def names(data: ImageFolderDataModule, part: str) -> list[str]:
    return list(data.read_samples(part).names)


@pytest.fixture
def photos(tmp_path, make_pictures):
    make_pictures(tmp_path / "photos", ants=10, bees=20)
    return tmp_path / "photos"


def test_classes_are_known_without_setup(photos):
    data = ImageFolderDataModule(photos)
    assert data.classes == ["ants", "bees"]
    assert data.class_to_idx == {"ants": 0, "bees": 1}
    assert data.num_classes == 2


def test_a_split_is_stratified_complete_and_written_to_disk(photos):
    data = ImageFolderDataModule(photos, val_split=0.2, test_split=0.1)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    assert data.class_counts == {"ants": 7, "bees": 14}
    assert data.counts("val") == {"ants": 2, "bees": 4}
    assert data.counts("test") == {"ants": 1, "bees": 2}
    stored = json.loads(data.split_file.read_text())["files"]
    whole = names(ImageFolderDataModule(photos, val_split=0), "train")
    assert sorted(name for part in stored.values() for name in part) == whole


def test_another_process_reads_the_split_and_does_not_make_its_own(photos):
    first = ImageFolderDataModule(photos)
    first.prepare_data()
    stored = json.loads(first.split_file.read_text())
    moved = stored["files"]["val"].pop()
    stored["files"]["train"].append(moved)
    first.split_file.write_text(json.dumps(stored))
    assert moved in names(ImageFolderDataModule(photos), "train")


def test_nothing_is_left_beside_the_split_file(photos):
    before = set(os.listdir(photos))
    data = ImageFolderDataModule(photos)
    data.prepare_data()
    assert set(os.listdir(photos)) - before == {data.split_file.name}


def test_another_seed_has_a_split_of_its_own(photos):
    assert names(ImageFolderDataModule(photos, seed=1), "val") != names(
        ImageFolderDataModule(photos, seed=2), "val"
    )


def test_pictures_that_come_later_are_left_out_with_a_warning(photos, make_pictures):
    before = names(ImageFolderDataModule(photos), "val")
    make_pictures(photos, ants=12)
    data = ImageFolderDataModule(photos)
    with pytest.warns(UserWarning, match=r"newer than the split: 2 .*delete"):
        assert names(data, "val") == before
    assert len(names(data, "train")) == 24


def test_pictures_that_are_gone_are_told_and_the_others_stay_where_they_were(photos):
    before = names(ImageFolderDataModule(photos), "val")
    (photos / before[0]).unlink()
    with pytest.warns(UserWarning, match=r"1 \('.*'\) are gone"):
        assert names(ImageFolderDataModule(photos), "val") == before[1:]


def test_a_class_newer_than_the_split_is_an_error_that_names_the_file(photos, make_pictures):
    names(ImageFolderDataModule(photos), "val")
    make_pictures(photos, wasps=3)
    data = ImageFolderDataModule(photos)
    with (
        pytest.warns(UserWarning, match="newer"),
        pytest.raises(ValueError, match=r"'wasps'.*newer than the split in '.*\.json'"),
    ):
        data.read_samples("train")


def test_a_split_file_of_another_run_is_refused(photos, tmp_path):
    names(ImageFolderDataModule(photos, split_file=tmp_path / "split.json"), "val")
    other = ImageFolderDataModule(photos, split_file=tmp_path / "split.json", val_split=0.3)
    with pytest.raises(ValueError, match=r"made with val_split=0\.2.*this run has val_split=0\.3"):
        other.read_samples("val")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"files": 3}'])
def test_a_split_file_that_holds_no_split_is_refused(photos, tmp_path, content):
    (tmp_path / "split.json").write_text(content)
    data = ImageFolderDataModule(photos, split_file=tmp_path / "split.json")
    with pytest.raises(ValueError, match=r"split\.json' holds no split"):
        data.read_samples("val")


def test_a_place_that_cannot_be_written_to_asks_for_a_split_file(photos, tmp_path):
    (tmp_path / "file").write_text("")
    data = ImageFolderDataModule(photos, split_file=tmp_path / "file" / "split.json")
    with pytest.raises(PermissionError, match="`split_file`"):
        data.prepare_data()


def test_a_folder_for_validation_is_taken_and_nothing_is_written(tmp_path, make_pictures):
    make_pictures(tmp_path / "train", ants=3, bees=3)
    make_pictures(tmp_path / "valid", ants=2, bees=1)
    before = set(os.listdir(tmp_path))
    data = ImageFolderDataModule(tmp_path)
    data.prepare_data()
    data.setup("fit")
    assert data.class_counts == {"ants": 3, "bees": 3}
    assert data.counts("val") == {"ants": 2, "bees": 1}
    assert set(os.listdir(tmp_path)) == before


def test_without_a_folder_for_validation_it_is_split_from_training(tmp_path, make_pictures):
    make_pictures(tmp_path / "train", ants=10, bees=10)
    make_pictures(tmp_path / "test", ants=2, bees=3)
    data = ImageFolderDataModule(tmp_path, val_split=0.3)
    assert len(names(data, "train")), len(names(data, "val")) == (14, 6)
    assert len(names(data, "test")) == 5


def test_a_missing_class_in_validation_keeps_the_labels_of_training(tmp_path, make_pictures):
    make_pictures(tmp_path / "train", ants=3, bees=3, cows=3)
    make_pictures(tmp_path / "val", ants=2, bees=0, cows=1)
    data = ImageFolderDataModule(tmp_path)
    with pytest.warns(UserWarning, match="'bees'"):
        assert data.read_samples("val").labels == [0, 0, 2]


def test_a_class_that_training_lacks_is_an_error_with_the_nearest_name(tmp_path, make_pictures):
    make_pictures(tmp_path / "train", ants=3, bees=3)
    make_pictures(tmp_path / "val", Ants=2, bees=1)
    with pytest.raises(ValueError, match=r"'Ants', which training does not have.*mean 'ants'"):
        ImageFolderDataModule(tmp_path).read_samples("val")


def test_what_testing_will_be_refused_for_is_said_before_the_training(tmp_path, make_pictures):
    make_pictures(tmp_path / "train", ants=5, bees=5)
    make_pictures(tmp_path / "test", ants=2, cows=2)
    with pytest.warns(UserWarning, match=r"`test` will be refused: .*has 'cows', which training"):
        ImageFolderDataModule(tmp_path).prepare_data()


@pytest.mark.filterwarnings("ignore:.*the labels stay those of")
@pytest.mark.parametrize(
    ("val", "test", "classes"),
    [
        (["ants", "cows"], ["ants", "bees", "cows"], ["ants", "bees", "cows"]),
        (["ants", "bees", "cows"], ["bees", "cows"], ["ants", "bees", "cows"]),
        (["ants", "bees"], ["unsorted"], ["ants", "bees"]),
    ],
)
def test_without_training_labels_come_from_the_part_that_has_all_classes(
    tmp_path, make_pictures, val, test, classes
):
    make_pictures(tmp_path / "val", **dict.fromkeys(val, 2))
    make_pictures(tmp_path / "test", **dict.fromkeys(test, 2))
    data = ImageFolderDataModule(tmp_path)

    assert data.classes == classes
    for part, own in (("val", val), ("test", test)):
        if set(own) <= set(classes):
            assert {classes[label] for label in data.read_samples(part).labels} == set(own)
        else:
            with pytest.raises(ValueError, match=r"has 'unsorted', which '.*val' does not have"):
                data.read_samples(part)


def test_a_class_has_one_name_in_both_forms_of_unicode(tmp_path, make_pictures):
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    make_pictures(tmp_path / "train", **{composed: 3, "tea": 3})
    make_pictures(tmp_path / "val", **{decomposed: 1, "tea": 2})
    data = ImageFolderDataModule(tmp_path)

    assert data.read_samples("val").labels == [0, 1, 1]


def test_an_empty_training_class_is_an_error(photos):
    (photos / "cows").mkdir()
    with pytest.raises(ValueError, match=r"no pictures of 1 \('cows'\)"):
        ImageFolderDataModule(photos).prepare_data()


def test_stray_and_hidden_files_are_no_pictures_and_strays_are_named(photos, told):
    for stray in ("bees/notes.txt", "bees/anim.gif", "Thumbs.db", "bees/.hidden.png", ".DS_Store"):
        (photos / stray).write_bytes(b"")
    (photos / ".ipynb_checkpoints").mkdir()
    data = ImageFolderDataModule(photos)
    data.setup("fit")
    assert data.classes == ["ants", "bees"]
    assert sum(data.class_counts.values()) + sum(data.counts("val").values()) == 30
    assert "3 ('Thumbs.db', 'bees/anim.gif', 'bees/notes.txt')" in told.text
    assert ".hidden" not in told.text


def test_pictures_are_found_in_folders_within_a_class_and_by_suffixes_in_any_case(
    photos, make_pictures
):
    make_pictures(photos / "ants", suffix=".JPG", summer=5)
    data = ImageFolderDataModule(photos, val_split=0)
    data.setup("fit")
    assert data.class_counts == {"ants": 15, "bees": 20}


def test_counts_of_each_class_are_told_once_before_training(photos, told):
    data = ImageFolderDataModule(photos)
    data.setup("fit")
    data.setup("fit")
    # A record may come twice, by way of Lightning's logger and of the root's: it is one object.
    assert len({id(r) for r in told.records if "bees      16    4" in r.getMessage()}) == 1


def test_a_missing_folder_is_named_with_the_nearest(photos):
    with pytest.raises(FileNotFoundError, match=r"fotos'\. Did you mean 'photos'"):
        ImageFolderDataModule(photos.parent / "fotos")


def test_a_folder_without_class_folders_says_what_it_holds(photos):
    with pytest.raises(ValueError, match=r"no folder, and 10 picture\(s\)"):
        ImageFolderDataModule(photos / "ants")


def test_one_class_alone_is_refused(tmp_path, make_pictures):
    make_pictures(tmp_path, ants=4)
    with pytest.raises(ValueError, match="two at the least, but holds only 'ants'"):
        ImageFolderDataModule(tmp_path)


def test_a_test_folder_alone_can_be_tested_but_not_trained_on(
    tmp_path, make_pictures, trainer, network
):
    make_pictures(tmp_path / "test", ants=4, bees=3)
    data = ImageFolderDataModule(tmp_path)
    trainer.test(network, data, verbose=False)
    assert data.counts("test") == {"ants": 4, "bees": 3}
    with pytest.raises(ValueError, match="no pictures for train: there is test"):
        trainer.fit(network, data)


def test_two_folders_for_one_split_are_refused(tmp_path, make_pictures):
    for folder in ("train", "val", "validation"):
        make_pictures(tmp_path / folder, ants=2, bees=2)
    with pytest.raises(ValueError, match="more than one folder for val: val, validation"):
        ImageFolderDataModule(tmp_path)


def test_a_share_for_testing_beside_a_test_folder_is_refused(tmp_path, make_pictures):
    make_pictures(tmp_path / "train", ants=4, bees=4)
    make_pictures(tmp_path / "test", ants=4, bees=4)
    with pytest.raises(ValueError, match="Leave `test_split` out"):
        ImageFolderDataModule(tmp_path, test_split=0.1)


def test_testing_without_test_pictures_says_what_there_is(photos, trainer, network):
    with pytest.raises(ValueError, match=r"no pictures for test.*`test_split` is 0"):
        trainer.test(network, ImageFolderDataModule(photos))


def test_an_unlabelled_test_folder_does_not_disturb_training_and_points_to_predict_dir(
    tmp_path, make_pictures, trainer, network
):
    make_pictures(tmp_path / "train", ants=5, bees=5)
    make_pictures(tmp_path, test=3)
    data = ImageFolderDataModule(tmp_path)
    trainer.fit(network, data)
    with pytest.raises(ValueError, match="`predict_dir`"):
        trainer.test(network, data)


def test_a_folder_of_unlabelled_pictures_is_predicted_in_sorted_order(
    photos, tmp_path, make_pictures, trainer, network
):
    make_pictures(tmp_path / "new", b=2, a=2)
    make_pictures(tmp_path, new=1)
    data = ImageFolderDataModule(photos, predict_dir=tmp_path / "new", batch_size=2)
    labels = trainer.predict(network, data)
    assert data.predict_names == ["000.png", "a/000.png", "a/001.png", "b/000.png", "b/001.png"]
    assert torch.cat(labels).tolist() == [-1] * 5


def test_without_a_folder_to_predict_the_test_pictures_are_taken_then_those_of_validation(photos):
    for data in (ImageFolderDataModule(photos), ImageFolderDataModule(photos, test_split=0.2)):
        data.setup("predict")
        part = "test" if data.plan.test_split else "val"
        assert data.predict_names == names(data, part)


def test_an_empty_folder_to_predict_is_refused(photos, tmp_path):
    (tmp_path / "new").mkdir()
    with pytest.raises(ValueError, match="new' holds none"):
        ImageFolderDataModule(photos, predict_dir=tmp_path / "new").setup("predict")


@pytest.mark.parametrize("workers", [0, 2])
def test_training_sees_every_picture_at_the_size_of_the_model(photos, trainer, network, workers):
    data = ImageFolderDataModule(photos, batch_size=5, num_workers=workers)
    trainer.fit(network, data)
    assert torch.cat(network.seen).bincount().tolist() == [8, 16]
    assert network.shapes == {(3, 16, 16)}


def test_the_photographs_of_the_tutorial_are_counted_as_published(data_root):
    data = ImageFolderDataModule(data_root / "hymenoptera")
    data.prepare_data()
    data.setup("fit")
    assert data.class_counts == {"ants": 123, "bees": 121}
    assert data.counts("val") == {"ants": 70, "bees": 83}


def test_a_training_folder_that_is_not_ours_is_split_into_a_file_elsewhere(data_root, tmp_path):
    data = ImageFolderDataModule(data_root / "flowers12-224", split_file=tmp_path / "split.json")
    data.prepare_data()
    data.setup("fit")
    assert set(data.class_counts.values()) == {48}
    assert set(data.counts("val").values()) == {12}


def test_the_order_on_disk_does_not_matter(photos, tmp_path, make_pictures):
    make_pictures(tmp_path / "again", bees=20, ants=10)
    first, second = (ImageFolderDataModule(tmp_path / name) for name in ("photos", "again"))
    assert names(first, "val") == names(second, "val")

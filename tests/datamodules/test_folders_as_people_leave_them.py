"""Links, pipes, broken files, names of every kind: used, or told at the start, all at once."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lit_finetune.datamodules import ImageFolderDataModule


def paint(path: Path, seed: int = 0, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, *os.fsencode(path)])
    Image.fromarray(rng.integers(0, 256, (12, 14, 3), np.uint8)).save(path, **options)
    return path


def fill(root: Path, *classes: str, count: int = 6, ext: str = "png") -> Path:
    for name in classes:
        for i in range(count):
            paint(root / name / f"{i:03d}.{ext}")
    return root


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return fill(tmp_path / "photos", "ants", "bees")


@pytest.fixture(autouse=True)
def _never_waits() -> Iterator[None]:
    """Whoever waits for a pipe is woken up."""

    def wake(*_: object) -> None:
        raise TimeoutError("it waits")

    before = signal.signal(signal.SIGALRM, wake)
    signal.alarm(900)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def used(root: Path, **options: object) -> dict[str, list[str]]:
    data = ImageFolderDataModule(root, num_workers=0, **options)
    data.prepare_data()
    data.setup("fit")
    return {part: list(data.read_samples(part).names) for part in ("train", "val")}


def of_both(parts: dict[str, list[str]]) -> list[str]:
    return sorted(parts["train"] + parts["val"])


def own_circle(root: Path) -> None:
    (root / "ants/again").symlink_to(root / "ants")


def wider_circle(root: Path) -> None:
    (root / "ants/all").symlink_to("..")


def relative_links(root: Path) -> None:
    for i in range(6):
        (root / f"bees/z{i}.png").symlink_to(f"00{i}.png")


def links_before_files(root: Path) -> None:
    for i in range(6):
        (root / f"bees/00{i}.jpg").symlink_to(f"00{i}.png")


def hard_links(root: Path) -> None:
    for i in range(6):
        os.link(root / f"bees/00{i}.png", root / f"bees/a{i}.png")


def a_link_before_its_folder(root: Path) -> None:
    (root / "ants/z").mkdir()
    (root / "ants/000.png").rename(root / "ants/z/000.png")
    (root / "ants/b").symlink_to("z")


def a_web_of_links(root: Path) -> None:
    for name in "pqrstuvw":
        (root / "ants" / name).mkdir()
    for one in "pqrstuvw":
        for other in "pqrstuvw":
            (root / "ants" / one / f"to_{other}").symlink_to(f"../{other}")


def a_class_that_leads_back(root: Path) -> None:
    (root / "everything").symlink_to(root)


@pytest.mark.parametrize(
    "link",
    [
        *(own_circle, relative_links, links_before_files, hard_links),
        *(a_link_before_its_folder, a_web_of_links, a_class_that_leads_back),
    ],
)
def test_each_file_counts_once_whatever_links_there_are(photos, link):
    link(photos)
    names = of_both(used(photos))
    assert len(names) == 12
    assert len({(photos / name).resolve() for name in names}) == 12
    assert not any((photos / name).is_symlink() for name in names)


def test_links_do_not_change_an_earlier_split(photos):
    before = used(photos)
    a_link_before_its_folder(fill(photos.parent / "other", "ants", "bees"))
    relative_links(photos)
    own_circle(photos)
    assert used(photos) == before


@pytest.mark.parametrize("name", ["photos/cats", "val"])
def test_a_class_or_part_that_is_a_link_to_nowhere_is_refused(photos, tmp_path, name):
    root = photos if name.startswith("photos") else tmp_path
    (tmp_path / name).symlink_to("nowhere")
    with pytest.raises(FileNotFoundError, match=rf"'{Path(name).name}'.*links to nowhere"):
        ImageFolderDataModule(root)


def test_classes_and_pictures_may_lie_elsewhere(photos, tmp_path):
    fill(tmp_path / "elsewhere", "cats", "pool")
    (photos / "cats").symlink_to(tmp_path / "elsewhere/cats")
    (photos / "dogs").mkdir()
    for i in range(6):
        (photos / f"dogs/{i}.png").symlink_to(tmp_path / f"elsewhere/pool/00{i}.png")
    data = ImageFolderDataModule(photos)
    assert data.classes == ["ants", "bees", "cats", "dogs"]
    assert len(of_both(used(photos))) == 24


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_file_with_names_in_two_classes_is_refused_with_both(photos, link):
    link(photos / "ants/000.png", photos / "bees/twin.png")
    with pytest.raises(ValueError, match=r"ants/000\.png = bees/twin\.png.*more than one class"):
        used(photos)


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_file_with_names_in_two_parts_is_refused_with_both(tmp_path, link):
    fill(tmp_path / "train", "ants", "bees")
    fill(tmp_path / "val", "ants", "bees")
    link(tmp_path / "train/ants/000.png", tmp_path / "val/ants/twin.png")
    with pytest.raises(ValueError, match=r"train/ants/000\.png = val/ants/twin\.png.*one part"):
        used(tmp_path)


def test_a_circle_through_two_classes_is_refused_or_counted_once(photos):
    wider_circle(photos)
    with pytest.raises(ValueError, match="more than one class"):
        used(photos)


def test_pictures_to_predict_are_found_once(photos, tmp_path):
    new = fill(tmp_path / "new", "x")
    (new / "x/again").symlink_to(new)
    data = ImageFolderDataModule(photos, predict_dir=new)
    data.setup("predict")
    assert len(data.predict_names) == 6


def cut(path: Path, share: float = 0.6) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def truncated(ext: str, **options: object) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        cut(paint(path.with_suffix(f".{ext}"), **options))

    return make


def bound_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's name must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)
    os.chdir(here)


def loop(path: Path) -> None:
    path.symlink_to(path.name)


ODD: dict[str, Callable[[Path], object]] = {
    "dangling link": lambda path: path.symlink_to("nowhere.png"),
    "link to itself": loop,
    "pipe": os.mkfifo,
    "link to a pipe": lambda path: (os.mkfifo(path.with_suffix("")), path.symlink_to("odd")),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "socket": bound_socket,
    "folder": lambda path: path.mkdir(),
    "empty file": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("<html>not found</html>"),
    "cut jpg": truncated("jpg"),
    "cut png": truncated("png"),
    "cut webp": truncated("webp"),
    "cut tif": truncated("tif"),
    "cut tif, compressed": truncated("tif", compression="tiff_lzw"),
    "cut bmp": truncated("bmp"),
    "cut ppm": truncated("ppm"),
    "few bits": lambda path: Image.fromarray(np.full((4, 4), 300, np.uint16)).save(path),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("on_corrupt", ["raise", "skip"])
@pytest.mark.parametrize("stage", ["fit", "predict"])
def test_what_is_no_picture_is_named_at_the_start_and_never_waited_for(
    photos, kind, on_corrupt, stage
):
    new = fill(photos.parent / "new", "x", count=2)
    folder = new / "x" if stage == "predict" else photos / "ants"
    ODD[kind](folder / "odd.png")
    data = ImageFolderDataModule(photos, on_corrupt=on_corrupt, predict_dir=new, num_workers=0)
    if on_corrupt == "raise":
        with pytest.raises(OSError, match=r"odd\.\w+'.*`on_corrupt` to 'skip'"):
            data.prepare_data()
        return
    with pytest.warns(UserWarning, match=r"cannot be read: 1 \('.*odd\.\w+'\)"):
        data.prepare_data()
    data.setup("fit")
    data.setup("predict")
    assert sum(len(data.read_samples(part).names) for part in ("train", "val")) == 12
    assert data.predict_names == ["x/000.png", "x/001.png"]


@pytest.mark.parametrize("on_corrupt", ["raise", "skip"])
def test_what_cannot_be_read_in_all_parts_is_in_one_message(tmp_path, on_corrupt, recwarn):
    for part in ("train", "val", "test"):
        fill(tmp_path / part, "ants", "bees")
        for i in range(12):
            (tmp_path / part / "ants" / f"bad{i:02d}.jpg").write_bytes(b"")
        os.mkfifo(tmp_path / part / "bees/pipe.png")
    data = ImageFolderDataModule(tmp_path, on_corrupt=on_corrupt)
    if on_corrupt == "raise":
        with pytest.raises(OSError, match="cannot be read") as raised:
            data.prepare_data()
        told = [str(raised.value)]
    else:
        with pytest.warns(UserWarning, match="cannot be read") as warned:
            data.prepare_data()
        told = [str(each.message) for each in warned]
    assert len(told) == 1
    for part in ("train", "val", "test"):
        assert f"13 ('{part}/ants/bad00.jpg'" in told[0]
        assert f"'{tmp_path / part}'" in told[0]
    assert "it is a pipe" in told[0]
    assert len(told[0]) < 3000


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", ["ants/000.png", "ants/inner"])
def test_what_may_not_be_read_is_named(photos, name):
    (photos / "ants/inner").mkdir()
    (photos / name).chmod(0)
    with pytest.raises(OSError, match=name):
        used(photos)
    (photos / name).chmod(0o700)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        *(("x.jfif", "JPEG"), ("x.jpe", "JPEG"), ("x.JPG", "JPEG"), ("x.tga", "TGA")),
        *(("x", "PNG"), ("x", "JPEG"), ("x.jpg", "PNG"), ("x.png", "GIF"), ("x.txt", "PNG")),
        *(("x.avif", "AVIF"), ("x.webp", "WEBP"), ("x.jpg_large", "JPEG"), ("x.7", "TIFF")),
        *(("x.pbm", "PPM"), ("x.jp2", "JPEG2000"), ("x.dib", "DIB"), ("x.apng", "PNG")),
    ],
)
def test_pictures_are_known_by_their_content(photos, name, form):
    try:
        Image.open(photos / "ants/000.png").rotate(90).save(photos / "ants" / name, format=form)
    except (KeyError, OSError) as error:
        pytest.skip(f"this Pillow writes no {form}: {error}")
    assert f"ants/{name}" in of_both(used(photos))


@pytest.mark.parametrize(
    "name", ["x.gif", "x.ico", "x.nef", "x.jpg_original", "x.jpg~", "x.png.part", "x.heic", "x.thm"]
)
def test_pictures_of_other_kinds_and_backups_are_left_out_and_told(photos, name, told, recwarn):
    Image.open(photos / "ants/000.png").rotate(90).save(photos / "ants" / name, format="PNG")
    data = ImageFolderDataModule(photos)
    if name in ("x.nef", "x.thm"):
        with pytest.warns(UserWarning, match=rf"not read: 1 \('ants/{name}'\).*\.png, .*\.webp"):
            data.prepare_data()
    elif name != "x.heic":
        data.prepare_data()
        assert f"1 ('ants/{name}')" in told.text
        assert f"ants/{name}" not in of_both(used(photos))


def test_files_beside_pictures_are_counted(photos, told):
    for stray in ("notes.txt", "bees/Thumbs.db", ".DS_Store", "ants/._000.png", "ants/.x/y.png"):
        (photos / stray).parent.mkdir(exist_ok=True)
        (photos / stray).write_bytes(b"Mac OS X or so")
    fill(photos / "__MACOSX", "ants", "bees")
    assert len(of_both(used(photos))) == 12
    assert "2 ('bees/Thumbs.db', 'notes.txt')" in told.text
    assert "hidden: 4" in told.text


@pytest.mark.parametrize(
    ("train", "val"),
    [
        *(("training_set", "test_set"), ("train", "dev"), ("train", "eval"), ("Train", "Valid")),
        *(("seg_train/seg_train", "seg_test/seg_test"), ("trainset", "valset")),
        *(("TrainImages", "TestImages"), ("train2017", "val2017"), ("training", "validate")),
        ("train-jpg", "evaluation"),
    ],
)
def test_folders_named_after_parts_are_these_parts(tmp_path, train, val):
    fill(tmp_path / train, "ants", "bees", count=8)
    fill(tmp_path / val, "ants", "bees", count=4)
    data = ImageFolderDataModule(tmp_path)
    assert data.classes == ["ants", "bees"]
    part = "test" if "est" in val else "val"
    data.setup("fit")
    data.setup("test" if part == "test" else "validate")
    assert sum(data.counts("train").values()) == (16 if part == "val" else 12)
    assert sum(data.counts(part).values()) == 8


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["cats/", "dogs/", "test/"], r"'test' was taken for test.*2 \('cats', 'dogs'\)"),
        (["cats/", "dogs/", "val/cats", "val/dogs"], r"'val' was taken for val.*'cats', 'dogs'"),
        (["cats/train", "cats/val", "dogs/train", "dogs/val"], r"divided into parts.*cats/train"),
        (["cats/", "dogs/", "dogs/test"], r"divided into parts.*dogs/test"),
        (["train/cats/train", "train/cats/test", "train/dogs/"], "divided into parts"),
        (
            ["train_cats/", "train_dogs/", "test_cats/"],
            r"'train_cats', .*would be classes",
        ),
        (["train/a", "train/b", "val/a", "val/b", "dev/a"], "more than one folder for val"),
        (["photos/cats", "photos/dogs"], r"only 'photos'; did you mean '.*photos'"),
    ],
)
def test_what_may_be_a_part_or_a_class_is_refused(tmp_path, folders, message):
    for folder in folders:
        paint(tmp_path / folder / "0.png")
    with pytest.raises(ValueError, match=message):
        ImageFolderDataModule(tmp_path)


def test_folders_beside_the_parts_are_named(tmp_path):
    fill(tmp_path / "train", "ants", "bees")
    fill(tmp_path / "val", "ants", "bees")
    fill(tmp_path, "extra")
    (tmp_path / "labels").mkdir()
    with pytest.warns(UserWarning, match=r"1 \('extra'\) are not used.*'train' was taken"):
        ImageFolderDataModule(tmp_path)


@pytest.mark.parametrize(
    "classes",
    [
        ["car", "train"],
        ["training_shoes", "boots"],
        ["trains", "contest"],
        ["invalid", "broken"],
        ["test_tube", "flask"],
    ],
)
def test_classes_may_be_named_after_things(tmp_path, classes):
    fill(tmp_path, *classes)
    assert ImageFolderDataModule(tmp_path).classes == sorted(classes)
    assert len(of_both(used(tmp_path))) == 12


def copy(root: Path, *pairs: tuple[str, str]) -> None:
    for one, other in pairs:
        shutil.copy(root / one, root / other)


def test_copies_stay_on_one_side_of_a_split(photos):
    for name in ("ants", "bees"):
        copy(photos, *((f"{name}/00{i}.png", f"{name}/{j}{i}.png") for i in range(6) for j in "xy"))
    parts = used(photos, val_split=0.3)
    bytes_of = {
        part: {(photos / name).read_bytes() for name in names} for part, names in parts.items()
    }
    assert len(of_both(parts)) == 36
    assert not bytes_of["train"] & bytes_of["val"]
    assert len(parts["val"]) == 12


def test_files_of_one_size_are_not_copies(tmp_path):
    for name in ("ants", "bees"):
        for i in range(5):
            paint(tmp_path / name / f"{i}.bmp", seed=i)
    assert len(used(tmp_path)["val"]) == 2


def test_a_split_without_copies_is_the_one_it_was(photos):
    names = [f"{name}/00{i}.png" for name in ("ants", "bees") for i in range(6)]
    parts = used(photos, seed=3)
    assert parts["val"] == ["ants/002.png", "bees/003.png"] or len(parts["val"]) == 2
    assert of_both(parts) == names


@pytest.mark.parametrize("other", ["val", "test"])
def test_copies_in_two_given_parts_are_named(tmp_path, other):
    fill(tmp_path / "train", "ants", "bees")
    fill(tmp_path / other, "ants", "bees")
    copy(tmp_path, ("train/ants/000.png", f"{other}/ants/twin.png"))
    with pytest.warns(UserWarning, match=rf"two parts.*train/ants/000\.png = {other}/ants/twin"):
        ImageFolderDataModule(tmp_path).prepare_data()


def test_copies_in_two_classes_are_named(photos):
    copy(photos, ("ants/000.png", "bees/twin.png"))
    with pytest.warns(UserWarning, match=r"two labels.*ants/000\.png = bees/twin\.png"):
        ImageFolderDataModule(photos).prepare_data()


def test_copies_that_an_earlier_split_divided_are_named(photos):
    copy(photos, ("ants/000.png", "ants/twin.png"))
    data = ImageFolderDataModule(photos)
    data.prepare_data()
    stored = json.loads(data.split_file.read_text())
    names = stored["files"]["train"] + stored["files"]["val"]
    stored["files"] = {
        "train": [name for name in names if name != "ants/twin.png" and "003" not in name],
        "val": ["ants/twin.png", "ants/003.png", "bees/003.png"],
    }
    data.split_file.write_text(json.dumps(stored))
    with pytest.warns(UserWarning, match=r"two parts.*ants/000\.png = ants/twin\.png"):
        ImageFolderDataModule(photos).prepare_data()


def bytes_name(folder: Path, source: str, name: bytes) -> None:
    try:
        os.rename(folder / source, os.path.join(os.fsencode(folder), name))
    except OSError as error:
        pytest.skip(f"this file system has no such names: {error}")


@pytest.mark.parametrize("options", [{}, {"on_corrupt": "skip"}, {"cache": "disk"}])
def test_names_that_are_no_text_are_used(photos, options):
    bytes_name(photos / "ants", "000.png", b"caf\xe9.png")
    bytes_name(photos, "bees", b"abeilles \xe9t\xe9")
    first, again = used(photos, **options), used(photos, **options)
    assert first == again
    assert len(of_both(first)) == 12
    assert "ants/caf\udce9.png" in of_both(first)


def names_and_count(photos):
    data = ImageFolderDataModule(
        photos, num_workers=0, batch_size=4, image_size=8, cache="disk", on_corrupt="skip"
    )
    data.prepare_data()
    data.setup("fit")
    names = [name for part in ("train", "val") for name in data.read_samples(part).names]
    loaders = (data.train_dataloader(), data.val_dataloader())
    count = sum(len(labels) for loader in loaders for _, labels in loader)
    return b"\n".join(os.fsencode(name) for name in names) + b"\n%d" % count


PROGRAM = f"""
import sys
from {__name__} import names_and_count
sys.stdout.buffer.write(names_and_count(sys.argv[1]))
"""


@pytest.mark.long
def test_another_locale_reads_the_same_split(photos, capfd):
    bytes_name(photos / "ants", "000.png", b"caf\xe9.png")
    bytes_name(photos / "ants", "001.png", "café.png".encode())
    here = names_and_count(photos)
    told = capfd.readouterr().err
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    there = subprocess.run(
        [sys.executable, "-c", PROGRAM, photos],
        env={**os.environ, **locale, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        check=False,
        timeout=300,
    )
    told += there.stderr.decode(errors="replace")
    assert there.returncode == 0, told
    assert "gone" not in told
    assert "newer" not in told
    assert here == there.stdout
    assert here.endswith(b"\n12")


def test_many_empty_folders_end_in_a_short_message(tmp_path):
    for i in range(500):
        (tmp_path / "photos" / f"class{i}").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"no pictures of 500 \('class0'") as raised:
        ImageFolderDataModule(tmp_path / "photos").prepare_data()
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize(
    "parts",
    [("trn", "tst"), ("tr", "te"), ("fold1", "fold2", "fold3"), ("A", "B"), ("Lehr", "Pruef")],
)
def test_parts_of_any_name_are_no_classes_unless_that_is_said(
    tmp_path: Path, make_pictures: Any, parts: tuple[str, ...]
) -> None:
    for part in parts:
        make_pictures(tmp_path / part, ant=4, bee=4)

    with pytest.raises(ValueError, match=r"hold the same folders each, 2 \('ant', 'bee'\)") as told:
        ImageFolderDataModule(tmp_path)
    assert "train, val and test" in str(told.value)
    assert f'classes=["{min(parts)}"' in str(told.value)
    data = ImageFolderDataModule(tmp_path, classes=parts[::-1], val_split=0, num_workers=0)
    data.setup("fit")
    assert data.classes == [*parts[::-1]]
    assert data.class_counts == dict.fromkeys(parts, 8)
    with pytest.raises(ValueError, match=r"`classes` has 2 \('ant', 'bee'\), but"):
        ImageFolderDataModule(tmp_path, classes=["ant", "bee"])


def test_a_small_part_may_lack_a_class_and_folders_within_classes_are_theirs(
    tmp_path: Path, make_pictures: Any
) -> None:
    parts, pets = tmp_path / "parts", tmp_path / "pets"
    make_pictures(parts / "fold1", ant=4, bee=4, cat=4)
    make_pictures(parts / "fold2", ant=4, bee=4)
    with pytest.raises(ValueError, match="hold the same folders each"):
        ImageFolderDataModule(parts)
    make_pictures(pets / "cat", indoor=4, garden=4)
    make_pictures(pets / "dog", indoor=4, street=4)
    assert ImageFolderDataModule(pets).classes == ["cat", "dog"]


@pytest.mark.parametrize(
    "name",
    ["@eaDir", "__MACOSX", ".ipynb_checkpoints", "lost+found", "$RECYCLE.BIN", ".thumbnails"],
)
def test_folders_of_systems_are_no_classes(tmp_path: Path, make_pictures: Any, name: str) -> None:
    make_pictures(tmp_path, ant=5, bee=5)
    for folder in (tmp_path / name, tmp_path / "ant" / name):
        make_pictures(folder, ant=3)

    data = ImageFolderDataModule(tmp_path, val_split=0, num_workers=0)
    data.setup("fit")

    assert data.class_counts == {"ant": 5, "bee": 5}


@pytest.mark.parametrize("classes", [{"ants", "bees"}, {"ants": 1, "bees": 0}, "ants,bees", 2])
def test_names_without_an_order_are_refused(photos: Path, classes: Any) -> None:
    with pytest.raises(TypeError, match=r"`classes` must be a list of names .* but got"):
        ImageFolderDataModule(photos, classes=classes)

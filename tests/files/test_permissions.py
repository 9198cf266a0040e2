"""A cache that anybody may have written is told."""

import os
import warnings
from pathlib import Path

import pytest
from PIL import Image

from lit_finetune.datamodules import ImageFolderDataModule
from lit_finetune.files.permissions import folder_open_to_all

pytestmark = pytest.mark.skipif(os.name != "posix", reason="other permissions")


@pytest.mark.parametrize(
    ("mode", "above", "is_open"),
    [
        (0o755, 0o755, False),
        (0o777, 0o755, True),
        (0o1777, 0o755, True),
        (0o775, 0o755, False),
        (0o755, 0o777, True),
        (0o755, 0o1777, False),
        (None, 0o777, True),
        (None, 0o755, False),
    ],
)
def test_folders_that_all_may_write_into_are_found(
    tmp_path: Path, mode: int | None, above: int, is_open: bool
) -> None:
    folder = tmp_path / "above" / "kept"
    folder.parent.mkdir()
    if mode is not None:
        folder.mkdir()
        folder.chmod(mode)
    folder.parent.chmod(above)

    assert (folder_open_to_all(folder) is not None) == is_open


@pytest.mark.parametrize("mode", [0o755, 0o777])
def test_a_cache_of_pictures_that_all_may_write_is_warned_of(tmp_path: Path, mode: int) -> None:
    for number in range(8):
        path = tmp_path / "photos" / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    kept = tmp_path / "kept"
    kept.mkdir()
    kept.chmod(mode)
    data = ImageFolderDataModule(
        tmp_path / "photos", image_size=8, num_workers=0, cache="disk", cache_dir=kept
    )

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        data.prepare_data()
        data.setup("fit")

    messages = [str(each.message) for each in told if "Every user" in str(each.message)]
    assert bool(messages) == (mode == 0o777)
    assert all(str(kept) in each for each in messages)

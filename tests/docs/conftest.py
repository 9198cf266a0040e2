"""What the documentation speaks of: a folder `photos` with two classes, and `bee.jpg`."""

from pathlib import Path

import pytest
from PIL import Image

from tests.docs.pages import ROOT


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which a test starts, with these."""
    monkeypatch.syspath_prepend(ROOT)
    from examples.demo_data import draw_shapes

    draw_shapes(2, per_class=10).rename(tmp_path / "photos")
    Image.new("RGB", (40, 40), "yellow").save(tmp_path / "bee.jpg")
    (tmp_path / "new_photos").mkdir()
    Image.new("RGB", (40, 40), "yellow").save(tmp_path / "new_photos/bee.jpg")
    return tmp_path

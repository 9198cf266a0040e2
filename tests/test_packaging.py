"""What a user installs."""

from importlib import import_module
from pathlib import Path
from types import ModuleType
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]


def public_classes(module: ModuleType) -> dict[str, object]:
    return {name: value for name, value in vars(module).items() if isinstance(value, type)}


@pytest.fixture(scope="module")
def wheel_files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names of the files in a wheel that is built from this tree."""
    api = pytest.importorskip("poetry.core.masonry.api", reason="needs the extra `dev`")
    folder = tmp_path_factory.mktemp("wheel")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        wheel = folder / api.build_wheel(str(folder))
    return ZipFile(wheel).namelist()


@pytest.mark.parametrize("name", ["callbacks", "datamodules"])
def test_a_folder_and_its_installed_name_hold_the_same_classes(name: str) -> None:
    classes = public_classes(import_module(name))

    assert classes
    assert classes == public_classes(import_module(f"lit_finetune.{name}"))


def test_a_wheel_installs_one_import_package(wheel_files: list[str]) -> None:
    roots = {name.split("/")[0] for name in wheel_files}

    assert {root for root in roots if not root.endswith(".dist-info")} == {"lit_finetune"}


@pytest.mark.parametrize("folder", ["lit_finetune", "callbacks", "datamodules"])
def test_a_wheel_holds_every_module_and_the_mark_of_its_types(
    wheel_files: list[str], folder: str
) -> None:
    source = ROOT / folder
    sources = {path.relative_to(source).as_posix() for path in source.rglob("*.py")}
    prefix = "lit_finetune/" if folder == "lit_finetune" else f"lit_finetune/{folder}/"
    in_wheel = {name.removeprefix(prefix) for name in wheel_files if name.startswith(prefix)}

    assert sources - {"callbacks.py", "datamodules.py"} | {"py.typed"} <= in_wheel


def test_a_wheel_has_the_folders_in_place_of_their_aliases(wheel_files: list[str]) -> None:
    assert not {"lit_finetune/callbacks.py", "lit_finetune/datamodules.py"} & set(wheel_files)


def test_a_wheel_carries_the_licence(wheel_files: list[str]) -> None:
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel_files)

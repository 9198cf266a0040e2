"""The house keeps its shape: which file may import what, and how large things may grow."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from graphlib import TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"lit_finetune": "", "callbacks": "lit_finetune.", "datamodules": "lit_finetune."}
ALIASES = {ROOT / "lit_finetune/callbacks.py", ROOT / "lit_finetune/datamodules.py"}


def modules_by_name() -> dict[str, Path]:
    """The installed name of every file of the package: `lit_finetune.callbacks.run_summary`."""
    paths = {path: prefix for top, prefix in FOLDERS.items() for path in (ROOT / top).rglob("*.py")}
    dotted = {
        path: prefix + ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path, prefix in paths.items()
        if path not in ALIASES
    }
    return {name.removesuffix(".__init__"): path for path, name in sorted(dotted.items())}


MODULES = modules_by_name()
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}

# The floors of the house, from the roof down. A room is a package or a file directly below
# `lit_finetune`. It imports only from rooms on lower floors, and everything stands on one.
FLOORS = (
    ("cli",),
    ("callbacks",),
    ("classifier",),
    ("build", "probe"),
    ("datamodules", "training"),
    ("freezing", "resuming"),
    ("distributed", "optim"),
    ("feature_cache", "gradient_checkpointing", "lora", "schedules", "splitting", "weights"),
    ("blocks",),
    ("backbones", "heads"),
    ("modules",),
    ("classes", "images", "loading"),
    ("checkpoints",),
    ("_errors", "files"),
)
HEIGHTS = {room: height for height, row in enumerate(reversed(FLOORS)) for room in row}
OF_LIGHTNING = ("callbacks", "classifier", "cli", "datamodules", "training")
"""The rooms that may import Lightning, whole; of the others, these files:"""
ABOUT_LIGHTNING = (
    "distributed.supported_strategies",
    "distributed.wrapping",
    "resuming.checkpoint_io",
    "resuming.epoch_metrics",
    "resuming.restore_errors",
)


SUBCLASSES_OF_OPTIONAL = {"lit_finetune.datamodules.shard_stream": "ShardStream"}
"""A subclass of an optional package's class, in a module that is itself imported when used."""

PACKAGES = sorted(
    name.removeprefix("lit_finetune.")
    for name, path in MODULES.items()
    if path.name == "__init__.py" and path.parts[-3] == "lit_finetune"
)


def imported_names(module: str, nodes: Iterable[ast.AST]) -> Iterator[str]:
    """The full names that the import statements among `nodes` of a module bring in."""
    is_package = MODULES[module].name == "__init__.py"
    package = module if is_package else module.rpartition(".")[0]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), package)
            yield from (f"{source}.{alias.name}" for alias in node.names)


def imports(module: str) -> set[str]:
    """All that a module imports, at its top or inside a function."""
    return set(imported_names(module, ast.walk(TREES[module])))


def own_imports(module: str) -> set[str]:
    """The modules of ours from which a module imports."""
    return {owner for name in imports(module) for owner in [owner_of(name)] if owner} - {module}


def owner_of(name: str) -> str:
    """The module of ours that holds a name; empty when it is not ours."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name


def room_of(module: str) -> str:
    """The room in which a module is.

    >>> room_of("lit_finetune.blocks.partition"), room_of("lit_finetune.classifier")
    ('blocks', 'classifier')
    """
    return module.split(".")[1]


def package_of(module: str) -> str:
    """The package in which a module is; a file right in one of `FOLDERS` is its own."""
    package = module.rpartition(".")[0]
    return module if package.removeprefix("lit_finetune.") in FOLDERS else package


def roots(names: Iterable[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def lines_of_code(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> int:
    """How many lines of code a function or a class has: no docstrings, no blanks, no signature."""
    code = ast.unparse(without_docstrings(node))
    return sum(bool(line.strip()) for line in code.splitlines()) - 1


def without_docstrings(node: ast.AST) -> ast.AST:
    copy = ast.parse(ast.unparse(node)).body[0]
    for inner in ast.walk(copy):
        if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            has_one = ast.get_docstring(inner) is not None
            inner.body = inner.body[has_one:] or [ast.Pass()]
    return copy


every_module = pytest.mark.parametrize("module", list(MODULES))
every_part = pytest.mark.parametrize("module", [name for name in MODULES if name != "lit_finetune"])


def test_each_room_stands_on_a_floor() -> None:
    assert set(HEIGHTS) == {room_of(name) for name in MODULES if name != "lit_finetune"}
    assert len(HEIGHTS) <= 27, "about two dozen: a newcomer reads them at one look"


@every_part
def test_imports_run_down_only(module: str) -> None:
    for other in own_imports(module):
        is_own_room = room_of(other) == room_of(module)
        lower = HEIGHTS[room_of(other)] < HEIGHTS[room_of(module)]
        assert is_own_room or lower, f"it imports {other}"


def test_no_package_imports_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        if path.name != "__init__.py":  # which names what there is
            others = {package_of(other) for other in own_imports(module)}
            graph.setdefault(package_of(module), set()).update(others - {package_of(module)})

    TopologicalSorter(graph).prepare()  # a CycleError names the packages of the circle


def test_no_imports_run_in_a_circle() -> None:
    graph = {module: own_imports(module) for module in MODULES}

    TopologicalSorter(graph).prepare()  # a CycleError names the modules of the circle


@every_part
def test_a_name_is_imported_from_the_module_that_defines_it(module: str) -> None:
    assert "lit_finetune" not in own_imports(module), "not through the root of the package"


@every_module
def test_the_bare_names_of_the_two_folders_are_left_to_the_aliases(module: str) -> None:
    assert not roots(imports(module)) & {"callbacks", "datamodules"}, "only a checkout has these"


@every_module
def test_nothing_imports_the_command_line(module: str) -> None:
    others = {other for other in own_imports(module) if other.startswith("lit_finetune.cli")}
    assert not others or module.startswith("lit_finetune.cli")


@every_module
def test_the_core_knows_no_lightning(module: str) -> None:
    is_about_it = module.removeprefix("lit_finetune.") in ABOUT_LIGHTNING
    if module != "lit_finetune" and room_of(module) not in OF_LIGHTNING and not is_about_it:
        assert not roots(imports(module)) & {"lightning", "pytorch_lightning"}


@every_part
def test_datamodules_know_a_data_config_and_not_a_model(module: str) -> None:
    if room_of(module) == "datamodules":
        rooms = {room_of(other) for other in own_imports(module)}
        no_model = {"_errors", "checkpoints", "classes", "files", "images", "loading"}
        assert rooms <= {*no_model, "datamodules"}


@every_module
def test_optional_packages_are_imported_when_used(module: str) -> None:
    at_the_top = set(imported_names(module, TREES[module].body))

    optional = {"litdata", "peft", "sklearn", "timm", "transformers"}
    assert module in SUBCLASSES_OF_OPTIONAL or not roots(at_the_top) & optional
    assert not at_the_top & {f"{name}.{cls}" for name, cls in SUBCLASSES_OF_OPTIONAL.items()}


@every_module
def test_files_classes_and_functions_stay_small(module: str) -> None:
    assert MODULES[module].read_text(encoding="utf-8").count("\n") <= 400
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.ClassDef):
            assert lines_of_code(node) <= 200, f"class {node.name}"
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert lines_of_code(node) <= 40, f"function {node.name}"


def test_no_file_names_a_place_on_one_machine() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("only a git checkout knows which files it holds")
    here = "|".join(re.escape(str(place)) for place in (ROOT, Path.home(), sys.prefix))
    places = re.compile(rf"(?<![\w./-])(?:{here}|/(?:home|root|Users|work)/\w)")

    paths = [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]
    texts = {path: path.read_bytes().decode(errors="ignore") for path in paths}
    found = {path.name: match[0] for path, text in texts.items() if (match := places.search(text))}

    assert not found


@pytest.mark.parametrize("package", [each for each in PACKAGES if each not in ("cli", "training")])
def test_the_docstring_of_a_room_names_the_rooms_that_it_uses(package: str) -> None:
    used = {
        room_of(other)
        for module in MODULES
        if room_of(f"{module}.") == package
        for other in own_imports(module)
    }
    text = ast.get_docstring(TREES[f"lit_finetune.{package}"]) or ""

    named = re.findall(r"`(\w+)`", text.rpartition("Uses ")[2])
    assert named == sorted(used - {package, "_errors"})


def test_the_picture_of_the_floors_shows_them() -> None:
    picture = (ROOT / "docs/assets/floors.svg").read_text(encoding="utf-8")
    shown = re.findall(r' y="(\d+)">(\w+)</text>', picture)

    heights = [int(height) for height, _ in shown]
    rows = [[room for y, room in shown if int(y) == height] for height in sorted({*heights})]
    assert rows == [list(row) for row in FLOORS]

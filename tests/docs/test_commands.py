"""Every command that the documentation shows is one that there is."""

import re
import shlex
from importlib.util import find_spec

import pytest

from lit_finetune.cli.command_line import main
from tests.docs.pages import PAGES, ROOT, all_code_blocks, code_blocks, commands

PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
COMMANDS = commands(code_blocks("bash"))
OURS = ("python train.py", "lit-finetune")
# These go on from a training: test_get_started.py and test_quickstart.py run them.
RUN_ELSEWHERE = [
    "lit-finetune predict --ckpt_path lightning_logs/version_0/checkpoints/last.ckpt"
    " --data.predict_dir new_photos",
]
PARSED = [each for each in COMMANDS if each.startswith(OURS) and each not in RUN_ELSEWHERE]
OTHERS = [each for each in COMMANDS if not each.startswith(OURS)]
KNOWN = ("python -m venv .venv", ". .venv/bin/activate", "pytest", "tensorboard", "pre-commit")


def test_every_block_says_its_language():
    told = {str(block): block.language for block in all_code_blocks()}

    assert set(told.values()) <= {"bash", "python", "yaml", "text"}, told


@pytest.mark.parametrize("command", PARSED)
def test_a_command_of_ours_is_read(command, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT)
    with open("my.yaml", "w") as file:
        file.write(code_blocks("yaml", page="README.md")[0].text)
    words = shlex.split(command.replace(" configs/", f" {ROOT}/configs/"))
    words = words[words.index("train.py") + 1 if "train.py" in words else 1 :]
    if words[0] == "blocks":
        main(args=words)
    else:
        with pytest.raises(SystemExit, match=r"^0$"):
            main(args=[*words, "--print_config"])

    assert capsys.readouterr().out


@pytest.mark.parametrize("command", OTHERS)
def test_any_other_command_is_one_that_there_is(command):
    words = shlex.split(command)
    if words[:2] == ["python", "-m"] and command not in KNOWN:
        assert find_spec(words[2])
    elif words[:2] == ["pip", "install"]:
        assert set(extras(command)) <= set(extras_of_the_package())
    elif words[:2] == ["pytest", "-m"]:
        assert f'"{words[2]}: ' in PYPROJECT
    elif words[0].startswith(".ci/"):
        assert (ROOT / words[0]).is_file()
        assert all(word in (ROOT / words[0]).read_text() for word in words[1:2])
    else:
        assert command.startswith(KNOWN), "teach this test what the command needs"


def extras(text: str) -> list[str]:
    """The names in brackets: `lit-finetune[timm]`."""
    return [name for found in re.findall(r"\[([a-z,]+)\]", text) for name in found.split(",")]


def extras_of_the_package() -> list[str]:
    table = PYPROJECT.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    return re.findall(r"(?m)^(\w+) = \[", table)


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_exists(page):
    text = PAGES[page]

    for module in re.findall(r"`python -m ([\w.]+)", text):
        assert find_spec(module), module
    for path in re.findall(
        r"`((?:docs|configs|examples|benchmarks|tests|lit_finetune|callbacks|datamodules)/[\w./]+)`",
        text,
    ):
        assert (ROOT / path).exists(), path
    for target in re.findall(r"`make ([a-z]+)`", text):
        assert f"\n{target}:" in MAKEFILE, target
    for name in extras(" ".join(re.findall(r"`pip install ([^`]+)`", text))):
        assert name in extras_of_the_package(), name

"""The commands that train from `my.yaml`, on small pictures; not those for eight devices."""

import shlex
from pathlib import Path

import pytest

from lit_finetune.cli.command_line import main
from tests.docs.pages import code_blocks, commands

TRAIN = "python train.py fit --config my.yaml"
COMMANDS = [
    each
    for each in commands(code_blocks("bash"))
    if each.startswith(TRAIN) and "--trainer.devices 8" not in each
]
SMALL = {
    "--model.weights": "null",
    "--data.image_size": "32",
    "--data.num_workers": "0",
    "--trainer.max_epochs": "6",
}


def words(command: str) -> list[str]:
    """The words of a command, with those of `SMALL` that it does not say itself."""
    added = [f"{name}={value}" for name, value in SMALL.items() if name not in command]
    return [*shlex.split(command)[2:], *added]


@pytest.mark.long
@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_trains(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("my.yaml").write_text(code_blocks("yaml", page="README.md")[0].text)
    if "last.ckpt" in command:
        main(args=words(TRAIN))
        capsys.readouterr()

    main(args=words(command))

    shown = capsys.readouterr()
    assert "checkpoints" in shown.out + shown.err

"""The page *Get started*, from the first command to the last line, on small pictures."""

import csv
import shlex
from pathlib import Path

import pytest

from lit_finetune.cli.command_line import main
from tests.docs.pages import PAGES, code_blocks, commands

PAGE = "docs/get_started.md"
SMALL = [
    "--model.weights=null",
    "--model.backbone=squeezenet1_1",
    "--data.image_size=32",
    "--data.num_workers=0",
    "--trainer.max_epochs=3",
]


@pytest.mark.slow
@pytest.mark.usefixtures("photos")
def test_the_first_five_minutes(capsys):
    fit, predict = (
        shlex.split(command)[1:]
        for command in commands(code_blocks("bash", page=PAGE))
        if command.startswith("lit-finetune")
    )

    main(args=[*fit, *SMALL])
    main(args=[*predict, "--predictions.path=table.csv"])

    assert "starts to train" in capsys.readouterr().out
    with Path("table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == ["bee.jpg"]
    assert len(rows[0]) == 2 + 2  # the file, what was predicted, and a column for each class

    block = next(b for b in code_blocks("python", page=PAGE) if "predict_image" in b.text)
    exec(block.text, {})

    scores = eval(capsys.readouterr().out.splitlines()[-1])
    assert sum(scores.values()) == pytest.approx(1)
    assert max(scores, key=lambda name: scores[name]) == rows[0]["predicted"]


def test_it_shows_the_lines_of_the_readme():
    for language in ("python", "yaml"):
        (block,) = code_blocks(language, page="README.md")
        assert block.text in PAGES[PAGE]

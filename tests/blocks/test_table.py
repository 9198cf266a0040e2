"""The table of blocks, and the command that prints it."""

import re
import sys

import pytest
import torch
from torch import nn
from torchvision import models

from lit_finetune.blocks.table import block_table, describe_blocks
from lit_finetune.cli.command_line import main


def test_the_rows_add_up_to_the_network() -> None:
    net = models.resnet18(num_classes=10)

    rows = describe_blocks(net, torch.zeros(1, 3, 224, 224))

    assert sum(row.parameters for row in rows) == sum(p.numel() for p in net.parameters())
    assert sum(row.share for row in rows) == pytest.approx(1)
    assert [row.output for row in rows[2:]] == [(128, 28, 28), (256, 14, 14), (512, 7, 7), (10,)]
    # As published for this network: https://pytorch.org/vision/stable/models.html
    assert sum(row.multiply_adds for row in rows) / 1e9 == pytest.approx(1.81, abs=0.01)


def test_the_cost_is_that_of_one_picture() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

    assert describe_blocks(net, torch.ones(5, 4)) == describe_blocks(net, torch.ones(1, 4))


def test_the_network_stays_as_it_is() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    before = {name: value.clone() for name, value in net.state_dict().items()}

    describe_blocks(net, torch.ones(5, 4))

    assert net[1].training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_block_that_is_not_called_has_no_output() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.idle, self.fc = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.one(x))

    row = describe_blocks(Idle(), torch.ones(1, 4))[1]

    assert (row.name, row.output, row.multiply_adds) == ("idle", None, 0)
    assert " - " in block_table([row])


WORDS = {
    "a name": ["--model.backbone", "squeezenet1_1", "--model.num_classes", "2"],
    "a run's configuration": ["--config", "my.yaml", "--model.num_classes", "2"],
}
CONFIG = """
model: {backbone: squeezenet1_1, weights: DEFAULT}
data: {class_path: lit_finetune.datamodules.ImageFolderDataModule, init_args: {data_dir: nowhere}}
trainer:
  max_epochs: 3
  callbacks: [{class_path: FreezeUnfreezeCallback, init_args: {schedule: full}}]
checkpoint: {save_top_k: 2}
"""


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
def test_the_command_needs_no_data(
    words: list[str], tmp_path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):  # set by `seed_everything`
        monkeypatch.setenv(name, "0")
    (tmp_path / "my.yaml").write_text(CONFIG)

    main(args=["blocks", *words])

    printed = capsys.readouterr().out
    assert re.search(r"^head +classifier.0, .* 1,026 +0.1% +2 ", printed, re.MULTILINE)
    assert [path.name for path in tmp_path.iterdir()] == ["my.yaml"]

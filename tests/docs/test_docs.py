"""What the documentation shows can be done."""

import re
from pathlib import Path

import pytest
import yaml

from lit_finetune.blocks.block import Block
from lit_finetune.callbacks import FreezeUnfreezeCallback, FrozenPrefixCache
from lit_finetune.schedules.parse import read_schedule
from lit_finetune.schedules.plan import make_plan
from lit_finetune.schedules.strategies import make_schedule, split_strategy

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "schedules.md").read_text(encoding="utf-8")
NAMES = ["stem", "layer1", "layer2", "layer3", "layer4", "head"]
BLOCKS = [Block(name, (name,), (f"{name}.weight",)) for name in NAMES]


def code(language: str, text: str = TEXT) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("block", code("yaml"))
def test_every_schedule_that_is_shown_can_be_followed(block: str) -> None:
    schedule = yaml.safe_load(block)["schedule"]
    FreezeUnfreezeCallback(schedule)

    split = split_strategy(schedule)
    phases = (
        make_schedule(*split, block_names=NAMES, max_epochs=10)
        if split
        else read_schedule(schedule)
    )
    assert len(make_plan(phases, BLOCKS, max_epochs=10).phases) > 1


@pytest.mark.parametrize("block", code("python"))
def test_every_program_that_is_shown_runs(block: str) -> None:
    exec(compile(block, "schedules.md", "exec"), {})


def test_there_is_something_to_test() -> None:
    assert (len(code("yaml")), len(code("python"))) == (7, 1)


@pytest.mark.parametrize("block", code("python", (DOCS / "distributed.md").read_text("utf-8")))
def test_what_is_shown_of_several_processes_can_be_made(block: str) -> None:
    cpu = block.replace("Trainer(devices", "Trainer(accelerator='cpu', logger=False, devices")

    exec(compile(cpu, "distributed.md", "exec"), {"unfreeze": FreezeUnfreezeCallback("head_only")})


PREFIX = (DOCS / "frozen_prefix.md").read_text(encoding="utf-8")


def test_the_configuration_with_a_cache_can_be_read() -> None:
    (block,) = code("yaml", PREFIX)
    freeze, cache = yaml.safe_load(block)["trainer"]["callbacks"]

    FreezeUnfreezeCallback(**freeze["init_args"])
    assert cache["class_path"].rpartition(".")[2] == FrozenPrefixCache.__name__


def test_what_is_shown_of_splitting_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = code("python", PREFIX)

    exec(compile(block, "frozen_prefix.md", "exec"), {})

    assert set(eval(capsys.readouterr().out).values()) == {None}

"""Every configuration of the documentation is read as it stands; those of whole runs train."""

from pathlib import Path

import pytest
import yaml

from lit_finetune.blocks.block import Block
from lit_finetune.callbacks import FreezeUnfreezeCallback
from lit_finetune.cli.command_line import main
from lit_finetune.schedules.parse import read_schedule
from lit_finetune.schedules.plan import make_plan
from lit_finetune.schedules.strategies import make_schedule, split_strategy
from tests.docs.pages import CodeBlock, code_blocks

NAMES = ["stem", "layer1", "layer2", "layer3", "layer4", "head"]
BLOCKS = [Block(name, (name,), (f"{name}.weight",)) for name in NAMES]
YAML = code_blocks("yaml")
SCHEDULES = [block for block in YAML if "schedule" in yaml.safe_load(block.text)]
CONFIGS = [block for block in YAML if block not in SCHEDULES]


def test_there_is_something_to_test():
    assert (len(SCHEDULES), len(CONFIGS)) == (7, 4)


@pytest.mark.parametrize("block", SCHEDULES, ids=str)
def test_every_schedule_that_is_shown_can_be_followed(block):
    schedule = yaml.safe_load(block.text)["schedule"]
    FreezeUnfreezeCallback(schedule)

    split = split_strategy(schedule)
    phases = (
        make_schedule(*split, block_names=NAMES, max_epochs=10)
        if split
        else read_schedule(schedule)
    )
    assert len(make_plan(phases, BLOCKS, max_epochs=10).phases) > 1


def fit_words(block: CodeBlock) -> list[str]:
    """The words of a command that takes the configuration, and what it leaves out."""
    Path("my.yaml").write_text(block.text)
    told = yaml.safe_load(block.text)
    model = [] if "model" in told else ["--model.backbone=resnet18"]
    digits = ["--data=DigitsDataModule", "--data.digits=[0, 1]"]
    return ["fit", "--config", "my.yaml", *model, *([] if "data" in told else digits)]


@pytest.mark.parametrize("block", CONFIGS, ids=str)
def test_every_configuration_that_is_shown_is_read(block, capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        main(args=[*fit_words(block), "--print_config"])

    told, read = yaml.safe_load(block.text), yaml.safe_load(capsys.readouterr().out)
    for part in told:
        assert_within(told[part], read[part])


def assert_within(told, read):
    """Everything that is told stands in what was read."""
    if isinstance(told, dict) and isinstance(read, dict):
        for key in told:
            assert_within(told[key], read[key])
    elif isinstance(told, list) and isinstance(read, list):
        for each, other in zip(told, read, strict=True):
            assert_within(each, other)
    else:
        assert told == read or str(told) == str(read)


@pytest.mark.slow
@pytest.mark.usefixtures("photos")
def test_the_configuration_of_the_readme_trains(caplog):
    caplog.set_level("INFO")
    (block,) = code_blocks("yaml", page="README.md")

    main(args=[*fit_words(block), "--model.weights=null", "--trainer.fast_dev_run=true"])

    assert "Epoch 0: training head" in caplog.text


@pytest.mark.slow
def test_the_configuration_with_adapters_trains(caplog):
    pytest.importorskip("peft")
    pytest.importorskip("timm")
    caplog.set_level("INFO")
    (block,) = code_blocks("yaml", page="docs/adapting.md")
    quiet = ["--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1"]

    main(args=[*fit_words(block), *quiet, "--trainer.max_epochs=2"])

    assert "9 layers have adapters, and the rest stays frozen" in caplog.text
    assert "Epoch 1: training all" in caplog.text


@pytest.mark.long
@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize(("page", "epochs"), [("docs/frozen_prefix.md", 7), ("docs/data.md", 1)])
def test_a_configuration_for_photographs_trains(page, epochs, caplog):
    caplog.set_level("INFO")
    (block,) = code_blocks("yaml", page=page)
    small = ["--data.image_size=32", "--data.num_workers=0", f"--trainer.max_epochs={epochs}"]

    main(args=[*fit_words(block), *small, "--trainer.enable_checkpointing=false"])

    assert f"`max_epochs={epochs}` reached" in caplog.text


def test_the_configuration_says_what_the_ten_lines_say():
    (block,) = code_blocks("yaml", page="README.md")
    (lines,) = code_blocks("python", page="README.md")
    config = yaml.safe_load(block.text)
    callback = config["trainer"]["callbacks"][0]["init_args"]

    assert str(callback["schedule"][2]) in lines.text
    assert config["model"]["backbone"] in lines.text

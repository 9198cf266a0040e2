"""The configurations that come along: each is read, and those that no other test runs train."""

from pathlib import Path

import pytest
import yaml

from examples.demo_data import draw_shapes
from lit_finetune.cli.command_line import main

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def named(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("config", CONFIGS, ids=named)
def test_a_configuration_says_how_it_is_run(config):
    about = [line for line in config.read_text().splitlines() if line.startswith("#")]

    assert f"--config configs/{config.name}" in "\n".join(about)


@pytest.mark.parametrize("config", CONFIGS, ids=named)
def test_a_configuration_is_read_as_it_stands(config, capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        main(args=["fit", f"--config={config}", "--print_config"])

    told, read = yaml.safe_load(config.read_text()), yaml.safe_load(capsys.readouterr().out)
    assert told["model"]["backbone"] == read["model"]["backbone"]
    assert told["trainer"]["max_epochs"] == read["trainer"]["max_epochs"]


@pytest.mark.slow
@pytest.mark.parametrize("config", ["cifar10_resnet20", "hymenoptera"])
def test_a_configuration_for_folders_trains(config):
    fit_a_step(config, f"--data.data_dir={draw_shapes(num_classes=3)}", "--data.num_workers=0")


@pytest.mark.slow
def test_the_configuration_for_cifar10_trains_its_network_on_digits():
    fit_a_step("cifar10", "--data=DigitsDataModule", "--data.image_size=32")


def fit_a_step(config: str, *options: str) -> None:
    path = next(path for path in CONFIGS if path.stem == config)
    without = ("--model.weights=null", "--trainer.fast_dev_run=true")
    main(args=["fit", f"--config={path}", *without, *options])

"""What the README shows works as it stands, but for what a download would bring."""

import re
from pathlib import Path

import pytest
import yaml

from lit_finetune import FinetuneClassifier
from lit_finetune.cli.command_line import main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `photos` where the README has one."""
    monkeypatch.syspath_prepend(ROOT)
    from examples.demo_data import draw_shapes

    draw_shapes(2, per_class=10).rename(tmp_path / "photos")
    return tmp_path / "photos"


@pytest.mark.slow
@pytest.mark.usefixtures("photos")
def test_the_ten_lines_train() -> None:
    (code,) = (block for block in blocks("python") if "trainer.fit" in block)
    offline = code.replace('weights="DEFAULT", ', "").replace("max_epochs=10", "max_epochs=6")
    names: dict[str, object] = {}
    exec(offline, names)

    model = names["model"]
    assert isinstance(model, FinetuneClassifier)
    assert len(model.classes) == 2
    assert len([line for line in code.splitlines() if line]) <= 10


@pytest.mark.slow
@pytest.mark.usefixtures("photos")
def test_the_configuration_runs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    (config,) = blocks("yaml")
    (tmp_path / "my.yaml").write_text(config)
    words = ["fit", "--config", "my.yaml", "--model.weights=null", "--trainer.fast_dev_run=true"]

    main(args=words)

    assert "Epoch 0: training head" in caplog.text


def test_the_configuration_says_what_the_ten_lines_say() -> None:
    config = yaml.safe_load(blocks("yaml")[0])
    callback = config["trainer"]["callbacks"][0]["init_args"]

    assert str(callback["schedule"][2]) in blocks("python")[1]
    assert config["model"]["backbone"] in blocks("python")[1]


def test_a_loss_of_ones_own_is_one_method() -> None:
    import torch

    (code,) = (block for block in blocks("python") if "class Focal" in block)
    names: dict[str, object] = {"FinetuneClassifier": FinetuneClassifier, "torch": torch}
    exec(code, names)
    focal = names["Focal"]
    assert isinstance(focal, type)
    model = focal(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2)), num_classes=2)

    assert model.loss(torch.zeros(3, 2), torch.tensor([0, 1, 0])) > 0


@pytest.mark.parametrize("path", re.findall(r"\]\(((?!https?:)[^)#]+)\)", README))
def test_what_it_links_to_is_there(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize("config", re.findall(r"--config (configs/\S+)", README))
def test_the_configurations_that_it_names_are_there(config: str) -> None:
    assert (ROOT / config).is_file()

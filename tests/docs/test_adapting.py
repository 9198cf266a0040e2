"""What `docs/adapting.md` shows can be done."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_finetune.cli.command_line import main

TEXT = (Path(__file__).parents[2] / "docs" / "adapting.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


def test_its_programs_run() -> None:
    pytest.importorskip("peft")
    names: dict[str, Any] = {}
    for code in blocks("python"):
        exec(code, names)

    images, _ = next(iter(names["loader"]))
    assert images.shape[1] == 12
    assert names["network"].state_dict().keys() == torch.load("merged.pth").keys()


@pytest.mark.slow
def test_its_configuration_trains(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("peft")
    pytest.importorskip("timm")
    caplog.set_level("INFO")
    (config,) = blocks("yaml")
    (tmp_path / "my.yaml").write_text(config)
    data = ["--data", "DigitsDataModule", "--data.digits", "[0, 1]"]
    quiet = ["--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1"]

    main(args=["fit", "--config", "my.yaml", *data, *quiet, "--trainer.max_epochs=2"])

    assert "9 layers have adapters, and the rest stays frozen" in caplog.text
    assert "Epoch 1: training all" in caplog.text

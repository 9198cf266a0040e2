"""The callback's schedule from the command line."""

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringModel

ENTRIES = """
        schedule:
          - modules: head
            warmup_steps: 5
          - at: 0.3
            modules: [layer2, -3]
            lr_scale: 0.1
          - on_plateau: {monitor: val/loss, mode: min, patience: 2, min_delta: 0.0, max_epochs: 10}
            modules: all
            restore_best: true
          - step: 500
            freeze: layer1
"""


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (ENTRIES, None),
        ("schedule: {0: head, 2: layer2}", {0: "head", 2: "layer2"}),
        ("schedule: gradual", "gradual"),
        ("schedule: {gradual: {every: 2}}", {"gradual": {"every": 2}}),
    ],
    ids=["list", "mapping", "name", "arguments"],
)
def test_the_command_line_takes_every_form(tmp_path: Path, schedule: str, expected: Any) -> None:
    config = tmp_path / "config.yaml"
    name = "lit_finetune.callbacks.FreezeUnfreezeCallback"
    config.write_text(
        f"trainer:\n  callbacks:\n    - class_path: {name}\n      init_args:\n        {schedule}\n"
    )
    options: dict[str, Any] = {"run": False, "save_config_callback": None}

    cli = LightningCLI(BoringModel, args=["--config", str(config)], **options)

    callback = cli.trainer.callbacks[0]
    if expected is None:
        assert [entry.get("at") for entry in callback.schedule] == [None, 0.3, None, None]
        assert callback.schedule[1]["modules"] == ["layer2", -3]
        assert callback.schedule[2]["on_plateau"]["max_epochs"] == 10
    else:
        assert callback.schedule == expected


def test_a_list_may_be_given_as_an_argument() -> None:
    words = [
        "--trainer.callbacks=lit_finetune.callbacks.FreezeUnfreezeCallback",
        "--trainer.callbacks.schedule=[{modules: head}, {step: 3, modules: layer2}]",
    ]
    cli = LightningCLI(BoringModel, args=words, run=False, save_config_callback=None)
    assert cli.trainer.callbacks[0].schedule == [
        {"modules": "head"},
        {"step": 3, "modules": "layer2"},
    ]

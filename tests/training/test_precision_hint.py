"""Who trains in full precision where there is better hardware is told."""

import pytest
import torch

from lit_finetune.training.precision_hint import precision_hint


def test_full_precision_on_a_cpu_with_matrix_units_is_advised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)

    hint = precision_hint(torch.device("cpu"), "32-true")
    assert hint is not None
    assert "bf16-mixed" in hint


def test_there_is_no_advice_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)

    assert precision_hint(torch.device("cpu"), "32-true") is None

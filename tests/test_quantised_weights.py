"""Quantised weights are called so, and are never loaded as if they were the weights."""

from pathlib import Path

import pytest
import torch
from torch import nn

from lit_finetune.weights import load_weights


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5), nn.Linear(5, 2))


KINDS = {
    "qint8": lambda weight: torch.quantize_per_tensor(weight, 0.01, 0, torch.qint8),
    "int8": lambda weight: (weight * 127).to(torch.int8),
    "uint8": lambda weight: (weight.abs() * 255).to(torch.uint8),
    "float8_e4m3fn": lambda weight: weight.to(torch.float8_e4m3fn),
}


@pytest.mark.parametrize("kind", KINDS)
def test_quantised_weights_are_named(tmp_path: Path, kind: str) -> None:
    state = network().state_dict()
    content = {n: KINDS[kind](v) if v.ndim > 1 else v for n, v in state.items()}
    torch.save({"model": content}, tmp_path / "a.pth")
    target = network()
    before = target[0].weight.clone()
    with pytest.raises(ValueError, match=rf"quantised .*{kind}.*before quantisation"):
        load_weights(target, tmp_path / "a.pth", min_match=0)
    assert target[0].weight.equal(before)


def test_gptq_is_named(tmp_path: Path) -> None:
    torch.save({"2.qweight": torch.ones(4, 5, dtype=torch.int32)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"quantised .*2\.qweight \(int32\)"):
        load_weights(network(), tmp_path / "a.pth")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_not_quantised(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.save(network().to(dtype).state_dict(), tmp_path / "a.pth")
    assert load_weights(network(), tmp_path / "a.pth").share == 1

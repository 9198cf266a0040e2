"""A weights file of a training that came to nothing is refused, and the network is as it was."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lit_finetune.weights.load import load_weights

NAN, INFINITE = float("nan"), float("inf")
State = dict[str, Tensor]


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5), nn.Linear(5, 2))


def with_number(name: str, number: float) -> State:
    state = network().state_dict()
    state[name].flatten()[-1:] = number
    return state


@pytest.mark.parametrize("number", [NAN, INFINITE, -INFINITE])
@pytest.mark.parametrize("name", ["0.weight", "1.bias", "1.running_var", "3.weight"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_that_are_not_finite_are_refused(
    tmp_path: Path, number: float, name: str, dtype: torch.dtype
) -> None:
    state = {
        n: v.to(dtype) if v.is_floating_point() else v for n, v in with_number(name, number).items()
    }
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    target = network()
    before = {n: v.clone() for n, v in target.state_dict().items()}
    with pytest.raises(ValueError, match=rf"nan or infinite in 1: {name}, .*checkpoint of before"):
        load_weights(target, tmp_path / "a.pth", min_match=0)
    assert all(v.equal(before[n]) for n, v in target.state_dict().items())


def test_weights_that_are_all_0_are_refused(tmp_path: Path) -> None:
    state = {n: v * ("weight" not in n or v.ndim == 1) for n, v in network().state_dict().items()}
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="nothing but 0 in all weights"):
        load_weights(network(), tmp_path / "a.pth")
    state["2.weight"][0, 0] = 1  # layers may begin with 0
    torch.save(state, tmp_path / "a.pth")
    assert load_weights(network(), tmp_path / "a.pth").share == 1


def test_masks_may_be_infinite_and_what_is_not_loaded_may_be_anything(tmp_path: Path) -> None:
    target = network()
    target.register_buffer("mask", torch.full((2, 2), -INFINITE))
    state = {**target.state_dict(), "decoder.weight": torch.tensor([[NAN]])}
    state["3.weight"] = torch.full((7, 5), NAN)  # of another number of classes
    torch.save(state, tmp_path / "a.pth")
    assert load_weights(target, tmp_path / "a.pth").share == 1

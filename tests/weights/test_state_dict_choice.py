"""Of several state dicts in a file the network is taken, or none is."""

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lit_finetune.weights.load import load_weights, read_state_dict


def network(width: int = 4) -> nn.Sequential:
    convolution = nn.Conv2d(3, width, 3)
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(width, 2))


def ones() -> dict[str, Tensor]:
    return {name: torch.ones_like(value) for name, value in network().state_dict().items()}


OTHERS = "fisher mask pruning_mask grads gradients init_state initial exp_avg ewc.importance old"


@pytest.mark.parametrize("right", ["model", "state_dict", "net", "model_state_dict", "my_own"])
@pytest.mark.parametrize("other", OTHERS.split())
@pytest.mark.parametrize("comes_first", [True, False])
def test_what_is_no_network_is_not_taken(
    tmp_path: Path, right: str, other: str, comes_first: bool
) -> None:
    state, target = network().state_dict(), network()
    first, *rest = other.split(".")
    items = [(first, {rest[0]: ones()} if rest else ones()), (right, state)]
    torch.save(dict(items if comes_first else items[::-1]), tmp_path / "a.pth")
    assert load_weights(target, tmp_path / "a.pth").entry == right
    assert all(value.equal(state[name]) for name, value in target.state_dict().items())
    read = read_state_dict(tmp_path / "a.pth")
    assert all(value.equal(state[name]) for name, value in read.items())


def test_what_is_no_network_is_not_taken_where_the_network_does_not_fit(tmp_path: Path) -> None:
    torch.save({"fisher": ones(), "model": network(8).state_dict()}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="the network was left as it is"):
        load_weights(network(), tmp_path / "a.pth")


@pytest.mark.parametrize("names", itertools.permutations(["epoch_1", "epoch_2"]))
def test_two_networks_that_names_do_not_tell_apart_are_refused(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    torch.save({name: network().state_dict() for name in names}, tmp_path / "a.pth")
    for read in (
        lambda: load_weights(network(), tmp_path / "a.pth"),
        lambda: read_state_dict(tmp_path / "a.pth"),
    ):
        with pytest.raises(
            ValueError, match=r"(?s)a\.pth .*'epoch_\d', 'epoch_\d'.*Save the right"
        ):
            read()


def test_two_networks_in_one_state_dict_are_refused(tmp_path: Path) -> None:
    both = {f"{side}.{n}": v for side in ("a", "b") for n, v in network().state_dict().items()}
    torch.save({"state_dict": both}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"'state_dict\.a', 'state_dict\.b'"):
        load_weights(network(), tmp_path / "a.pth")


def test_a_known_name_decides(tmp_path: Path) -> None:
    state, target = network().state_dict(), network()
    torch.save({"epoch_1": ones(), "model": state, "fold": ones()}, tmp_path / "a.pth")
    assert load_weights(target, tmp_path / "a.pth").entry == "model"
    assert target[0].weight.equal(state["0.weight"])


def test_copies_of_one_network_are_no_question(tmp_path: Path) -> None:
    state = network().state_dict()
    torch.save({"a": state, "b": {n: v.clone() for n, v in state.items()}}, tmp_path / "a.pth")
    assert load_weights(network(), tmp_path / "a.pth").share == 1
    assert read_state_dict(tmp_path / "a.pth").keys() == state.keys()

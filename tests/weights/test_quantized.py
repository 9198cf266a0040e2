"""Quantised weights are called so, and are never loaded as if they were the weights."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_finetune.weights.load import load_weights


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


def deep() -> nn.Sequential:
    """Most numbers are in the second layer; the first and the third are of the backbone too."""
    layers = [nn.Conv2d(3, 8, 3), nn.Linear(8, 32), nn.Linear(32, 4), nn.Linear(4, 2)]
    return nn.Sequential(*layers)


State = dict[str, Tensor]


def packed(layer: str, weight: Tensor) -> dict[str, Any]:
    """As `torch.ao.quantization.quantize_dynamic` leaves a linear layer."""
    linear = nn.Linear(*weight.shape[::-1])
    linear.load_state_dict({"weight": weight, "bias": torch.zeros(len(weight))})
    quantised = torch.ao.quantization.quantize_dynamic(
        nn.ModuleDict({"of": linear}), {nn.Linear}, dtype=torch.qint8
    )
    return {layer + name.removeprefix("of"): v for name, v in quantised.state_dict().items()}


def bitsandbytes(layer: str, weight: Tensor) -> State:
    form = torch.tensor(0, dtype=torch.uint8)
    whole = (weight * 99).to(torch.int8)
    return {
        f"{layer}.weight": whole,
        f"{layer}.SCB": torch.ones(len(weight)),
        f"{layer}.weight_format": form,
    }


def bitsandbytes_of_4_bits(layer: str, weight: Tensor) -> State:
    return {
        f"{layer}.weight": torch.zeros(weight.numel() // 2, 1, dtype=torch.uint8),
        f"{layer}.weight.absmax": torch.ones(4),
        f"{layer}.weight.quant_map": torch.ones(16),
        f"{layer}.weight.quant_state.bitsandbytes__nf4": torch.zeros(9, dtype=torch.uint8),
    }


def gptq(layer: str, weight: Tensor) -> State:
    return {
        f"{layer}.qweight": torch.ones(4, len(weight), dtype=torch.int32),
        f"{layer}.qzeros": torch.ones(1, 4, dtype=torch.int32),
        f"{layer}.scales": torch.ones(1, len(weight), dtype=torch.float16),
    }


def quanto(layer: str, weight: Tensor) -> State:
    scale = {f"{layer}.weight._scale": torch.ones(len(weight), 1)}
    return {f"{layer}.weight._data": weight.to(torch.int8), **scale}


def compressed(layer: str, weight: Tensor) -> State:
    shape = {f"{layer}.weight_shape": torch.tensor(weight.shape)}
    return {f"{layer}.weight_packed": torch.ones(len(weight), 1, dtype=torch.int32), **shape}


SCHEMES: dict[Callable[[str, Tensor], dict[str, Any]], str] = {
    packed: r"\(qint8\) of torch",
    bitsandbytes: r"\(int8\) of bitsandbytes",
    bitsandbytes_of_4_bits: r"\(uint8\) of bitsandbytes",
    gptq: r"qweight \(int32\) of GPTQ or AWQ",
    quanto: "of quanto",
    compressed: "of compressed-tensors",
}


def partly(scheme: Callable[[str, Tensor], dict[str, Any]], *layers: str) -> dict[str, Any]:
    """A state of which some layers are quantised."""
    state: dict[str, Any] = dict(deep().state_dict())
    for layer in layers:
        weight = state.pop(f"{layer}.weight")
        bias = state.pop(f"{layer}.bias")
        state |= {f"{layer}.bias": bias} if scheme is not packed else {}
        state |= scheme(layer, weight)
    return state


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.__name__)
def test_a_file_that_is_quantised_in_part_is_told_with_the_share_that_fits(
    tmp_path: Path, scheme: Callable[[str, Tensor], dict[str, Any]], prefix: str
) -> None:
    state = partly(scheme, "1", "3")
    content = {prefix + name: value for name, value in state.items()}
    torch.save({"state_dict": content}, tmp_path / "a.pth")
    network = deep()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    sizes = {n: p.numel() for n, p in network.named_parameters() if not n.startswith("3.")}
    kept = sum(size for n, size in sizes.items() if n in state and n != "1.weight")
    share = f"{kept / sum(sizes.values()):.1%}"
    match = rf"fits {share} of .*quantised layers, 1: 1\..*{SCHEMES[scheme]}, .*before quantisation"
    with pytest.raises(ValueError, match=match):
        load_weights(network, tmp_path / "a.pth")
    assert all(value.equal(before[name]) for name, value in network.state_dict().items())

    report = load_weights(network, tmp_path / "a.pth", min_match=0)
    assert network[2].weight.equal(state["2.weight"])
    assert network[1].weight.equal(before["1.weight"])
    assert re.search(rf"quantised +2: 1\..*{SCHEMES[scheme]}, 3\.", str(report))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.__name__)
def test_a_head_that_alone_is_quantised_is_left_out(
    tmp_path: Path, scheme: Callable[[str, Tensor], dict[str, Any]]
) -> None:
    torch.save(partly(scheme, "3"), tmp_path / "a.pth")
    network = deep()
    head = network[3].weight.clone()
    report = load_weights(network, tmp_path / "a.pth")
    assert (report.share, list(report.quantised)) == (1, ["3"])
    assert network[3].weight.equal(head)


def test_weights_that_are_objects_of_a_library_are_named(tmp_path: Path) -> None:
    torch.save({"1.weight": 0}, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    content = (tmp_path / "a.pth").read_bytes()
    stored = b"K\x00"
    assert content.count(stored) == 1
    made = b"ctorchao.dtypes\nAffineQuantizedTensor\n)R"  # called with nothing, were it unpickled
    (tmp_path / "a.pth").write_bytes(content.replace(stored, made))
    with pytest.raises(ValueError, match=r"quantised by torchao.*before quantisation"):
        load_weights(deep(), tmp_path / "a.pth")

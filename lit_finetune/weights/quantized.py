"""Quantised weights: which layers of a file have them, and whose they are.

They are whole numbers (or very short floats) that mean nothing without scales, zero points or code
books, which stand elsewhere in the file under names that each library has of its own.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from lit_finetune.weights.key_matching import is_float

_BY_NAME = {
    r"_packed_params\._packed_params$": "torch",
    r"SCB$|weight\.(nested_)?(absmax|quant_map)$|weight\.quant_state\.": "bitsandbytes",
    r"q(weight|zeros)$": "GPTQ or AWQ",
    r"weight_(packed|zero_point|shape)$": "compressed-tensors",
    r"W_q$": "HQQ",
    r"weight\._(data|scale|shift)$": "quanto",
    r"_weight_(qdata|scale|zero_point)$": "torchao",
}
"""By how the name of a tensor of a quantised layer ends, behind the layer's own name."""


def quantised_layers(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The layers whose weights are quantised in a file, and which tensor of each is, and how.

    >>> half = torch.ones(2, 2, dtype=torch.float16)
    >>> quantised_layers({"fc.weight": half.to(torch.int8), "fc.SCB": half[0], "conv.weight": half})
    {'fc': 'fc.weight (int8) of bitsandbytes'}
    """
    found: dict[str, str] = {}
    libraries: dict[str, str] = {}
    for name, tensor in tensors.items():
        is_weight = name.endswith("weight") and tensor.ndim > 1
        is_whole = not is_float(tensor) and not tensor.is_complex()
        said = f"{name} ({str(tensor.dtype).removeprefix('torch.')})"
        if tensor.is_quantized or (is_weight and is_whole and tensor.dtype != torch.bool):
            layer = re.sub(r"(^|\.)(_packed_params\._packed_params|\w*weight)$", "", name)
            found.setdefault(layer, said)
        for pattern, library in _BY_NAME.items():
            if named := re.search(rf"(^|\.)({pattern})", name):
                found.setdefault(name[: named.start()], said)
                libraries.setdefault(name[: named.start()], f" of {library}")
    return {layer: said + libraries.get(layer, "") for layer, said in found.items()}


def told(layers: Mapping[str, str]) -> str:
    """Some of the quantised layers, and how they are.

    >>> told({str(number): f"{number}.weight (int8)" for number in range(4)})
    '4: 0.weight (int8), 1.weight (int8), 2.weight (int8), …'
    """
    some = list(layers.values())
    return f"{len(some)}: {', '.join(some[:3])}{', …' if len(some) > 3 else ''}" if some else ""


def unlike(layers: Mapping[str, str], starts: Iterable[str]) -> dict[str, str]:
    """The layers whose names begin otherwise."""
    starts = tuple(starts)
    return {name: how for name, how in layers.items() if not f"{name}.".startswith(starts)}
